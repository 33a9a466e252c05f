#include "program.h"

#include <cerrno>
#include <cstdlib>
#include <sstream>

namespace defensemble_ops {

Instruction::Instruction(const std::string& line) : line_(line) {
  std::istringstream words(line);
  words >> name_;
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos) {
      values_.emplace_back(name_, word);  // `lanes 1,1,8,16`
    } else {
      values_.emplace_back(word.substr(0, equals), word.substr(equals + 1));
    }
  }
}

const std::string& Instruction::text(const std::string& key) const {
  for (const auto& [name, value] : values_) {
    if (name == key) return value;
  }
  fail("it has no " + key);
}

int64_t Instruction::integer(const std::string& key) const { return integer_from_text(text(key)); }

std::vector<int64_t> Instruction::integers(const std::string& key, size_t count) const {
  std::vector<int64_t> numbers;
  for (const auto& part : split(text(key), ',')) numbers.push_back(integer_from_text(part));
  if (count != 0 && numbers.size() != count) {
    fail(key + " has " + std::to_string(numbers.size()) + " numbers, expected " + std::to_string(count));
  }
  return numbers;
}

void Instruction::fail(const std::string& reason) const { throw ProgramError("instruction '" + line_ + "': " + reason); }

std::vector<Instruction> instructions_from_text(const std::string& program) {
  std::vector<Instruction> instructions;
  std::istringstream lines(program);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty()) instructions.emplace_back(line);
  }
  return instructions;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

int64_t integer_from_text(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0) throw ProgramError("'" + text + "' is not an integer");
  return number;
}

}  // namespace defensemble_ops
