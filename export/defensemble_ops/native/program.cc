#include "program.h"

#include <cerrno>
#include <cstdlib>
#include <locale>
#include <sstream>

namespace defensemble_ops {

Instruction::Instruction(const std::string& line) : line_(line) {
  std::istringstream words(line);
  words >> name_;
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos) {
      if (name_ != "lanes" || !values_.empty()) fail("'" + word + "' is not key=value");
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

int64_t Instruction::integer(const std::string& key) const { return integer_from(text(key)); }

std::vector<int64_t> Instruction::integers(const std::string& key, size_t count) const {
  std::vector<int64_t> numbers;
  for (const auto& part : split(text(key), ',')) numbers.push_back(integer_from(part));
  if (count != 0 && numbers.size() != count) {
    fail(key + " has " + std::to_string(numbers.size()) + " numbers, expected " + std::to_string(count));
  }
  return numbers;
}

bool Instruction::flag(const std::string& key) const {
  const std::string& value = text(key);
  if (value != "0" && value != "1") fail(key + " must be 0 or 1");
  return value == "1";
}

int64_t Instruction::integer_from(const std::string& text) const {
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || end != text.c_str() + text.size() || errno != 0) fail("'" + text + "' is not an integer");
  return number;
}

double Instruction::number_from(const std::string& text) const {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());  // the process may use another decimal separator
  double number = 0;
  stream >> number;
  if (stream.fail() || stream.peek() != std::istringstream::traits_type::eof()) fail("'" + text + "' is not a number");
  return number;
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
  size_t begin = 0;
  for (size_t end = 0; (end = text.find(separator, begin)) != std::string::npos; begin = end + 1) {
    parts.push_back(text.substr(begin, end - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

}  // namespace defensemble_ops
