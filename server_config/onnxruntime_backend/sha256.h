// SHA-256 of a file, by OpenSSL: whether it is the one that config.pbtxt was written for.
#pragma once

#include <string>

namespace onnx_backend {

// The digest as 64 lower-case hexadecimal digits. Throws Failure if the file cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace onnx_backend
