#include "json.h"

#include <charconv>
#include <cstring>

#include "failure.h"

namespace onnx_backend {

class Json::Reader {
 public:
  Reader(const char* text, size_t size) : at_(text), end_(text + size) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (at_ != end_) bad();
    return value;
  }

 private:
  static constexpr int kDeepest = 64;

  const char* at_;
  const char* end_;

  [[noreturn]] static void bad() { fail(TRITONSERVER_ERROR_INTERNAL, "Triton passed a configuration that is not valid JSON"); }

  void skip_space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  bool take(char wanted) {
    skip_space();
    if (at_ == end_ || *at_ != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!take(wanted)) bad();
  }

  Json read(int depth) {
    if (depth > kDeepest) bad();
    Json value;
    skip_space();
    if (at_ == end_) bad();
    if (*at_ == '{') {
      read_object(value, depth);
    } else if (*at_ == '[') {
      read_array(value, depth);
    } else if (*at_ == '"') {
      value.kind_ = Kind::string;
      value.text_ = read_string();
    } else {
      read_word(value);
    }
    return value;
  }

  void read_object(Json& value, int depth) {
    value.kind_ = Kind::object;
    expect('{');
    if (take('}')) return;
    do {
      std::string name = read_string();
      expect(':');
      value.fields_[std::move(name)] = read(depth + 1);
    } while (take(','));
    expect('}');
  }

  void read_array(Json& value, int depth) {
    value.kind_ = Kind::array;
    expect('[');
    if (take(']')) return;
    do {
      value.items_.push_back(read(depth + 1));
    } while (take(','));
    expect(']');
  }

  void read_word(Json& value) {
    while (at_ < end_ && std::strchr(",]} \n\t\r", *at_) == nullptr) value.text_ += *at_++;
    if (value.text_ == "null") {
      value.text_.clear();
    } else if (value.text_ == "true" || value.text_ == "false") {
      value.kind_ = Kind::boolean;
    } else if (!value.text_.empty() && (value.text_[0] == '-' || (value.text_[0] >= '0' && value.text_[0] <= '9'))) {
      value.kind_ = Kind::number;
    } else {
      bad();
    }
  }

  std::string read_string() {
    expect('"');
    std::string text;
    while (at_ < end_ && *at_ != '"') {
      if (*at_ != '\\') {
        text += *at_++;
        continue;
      }
      if (++at_ == end_) bad();
      const char escape = *at_++;
      switch (escape) {
        case 'n':
          text += '\n';
          break;
        case 't':
          text += '\t';
          break;
        case 'r':
          text += '\r';
          break;
        case 'b':
          text += '\b';
          break;
        case 'f':
          text += '\f';
          break;
        case 'u':
          append_utf8(text, read_code_point());
          break;
        case '"':
        case '\\':
        case '/':
          text += escape;
          break;
        default:
          bad();
      }
    }
    if (at_ == end_) bad();
    ++at_;
    return text;
  }

  uint32_t read_hex4() {
    uint32_t value = 0;
    if (end_ - at_ < 4) bad();
    const auto [stop, error] = std::from_chars(at_, at_ + 4, value, 16);
    if (error != std::errc() || stop != at_ + 4) bad();
    at_ = stop;
    return value;
  }

  uint32_t read_code_point() {
    const uint32_t first = read_hex4();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || end_ - at_ < 6 || at_[0] != '\\' || at_[1] != 'u') bad();
    at_ += 2;
    const uint32_t second = read_hex4();
    if (second < 0xDC00 || second > 0xDFFF) bad();
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  static void append_utf8(std::string& text, uint32_t point) {
    const auto byte = [&text](uint32_t value) { text += static_cast<char>(static_cast<unsigned char>(value)); };
    if (point < 0x80) {
      byte(point);
    } else if (point < 0x800) {
      byte(0xC0 | point >> 6);
      byte(0x80 | (point & 63));
    } else if (point < 0x10000) {
      byte(0xE0 | point >> 12);
      byte(0x80 | (point >> 6 & 63));
      byte(0x80 | (point & 63));
    } else {
      byte(0xF0 | point >> 18);
      byte(0x80 | (point >> 12 & 63));
      byte(0x80 | (point >> 6 & 63));
      byte(0x80 | (point & 63));
    }
  }
};

Json Json::parse(const char* text, size_t size) { return Reader(text, size).document(); }

const Json& Json::operator[](const std::string& name) const {
  static const Json none;
  const auto found = fields_.find(name);
  return found == fields_.end() ? none : found->second;
}

std::optional<int64_t> Json::integer() const {
  return kind_ == Kind::number || kind_ == Kind::string ? integer_from_text(text_) : std::nullopt;
}

std::optional<int64_t> integer_from_text(const std::string& text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc() || stop != end) return std::nullopt;
  return value;
}

}  // namespace onnx_backend
