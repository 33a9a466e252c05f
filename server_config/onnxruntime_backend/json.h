// A reader for the JSON in which Triton passes a model's configuration and the backend's command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace onnx_backend {

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  // Throws Failure if the text is not JSON, or is nested more than 64 levels deep.
  static Json parse(const char* text, size_t size);

  Kind kind() const { return kind_; }
  bool exists() const { return kind_ != Kind::null; }
  // A string's characters, or a number or boolean as it was written; else empty.
  const std::string& text() const { return text_; }
  // The value of a number or a string that is a decimal integer (protobuf writes int64 as strings).
  std::optional<int64_t> integer() const;
  const std::vector<Json>& items() const { return items_; }
  const std::map<std::string, Json>& fields() const { return fields_; }
  // The field of an object; a null value if it has no field of that name.
  const Json& operator[](const std::string& name) const;

 private:
  class Reader;

  Kind kind_ = Kind::null;
  std::string text_;
  std::vector<Json> items_;
  std::map<std::string, Json> fields_;
};

std::optional<int64_t> integer_from_text(const std::string& text);

}  // namespace onnx_backend
