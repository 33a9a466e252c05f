// The text of the attribute `program`: one instruction a line, `name key=value ...`. The exporter documents its instructions.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace defensemble_ops {

// What is wrong with a program or its inputs. The text reaches the user as the reason why the model does not load.
struct ProgramError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Instruction {
 public:
  explicit Instruction(const std::string& line);

  const std::string& name() const { return name_; }
  // These throw ProgramError if the key is missing or its value is of another form.
  const std::string& text(const std::string& key) const;
  int64_t integer(const std::string& key) const;
  std::vector<int64_t> integers(const std::string& key, size_t count = 0) const;
  bool flag(const std::string& key) const;  // 0 or 1
  // The same for a part of a value. The message contains the instruction.
  int64_t integer_from(const std::string& text) const;
  double number_from(const std::string& text) const;
  [[noreturn]] void fail(const std::string& reason) const;

 private:
  std::string line_;
  std::string name_;
  std::vector<std::pair<std::string, std::string>> values_;
};

std::vector<Instruction> instructions_from_text(const std::string& program);

// The parts between separators, of which some may be empty; none if the text is empty.
std::vector<std::string> split(const std::string& text, char separator);

}  // namespace defensemble_ops
