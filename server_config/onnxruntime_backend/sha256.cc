#include "sha256.h"

#include <dlfcn.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "failure.h"

namespace onnx_backend {

namespace {

// OpenSSL's, which is in the process because Triton is linked with it.
template <typename Function>
Function* from_openssl(const char* name) {
  void* const found = dlsym(RTLD_DEFAULT, name);
  if (found == nullptr) {
    fail(TRITONSERVER_ERROR_UNSUPPORTED,
         std::string("cannot check the SHA-256 of a model file: this Triton has no OpenSSL (no ") + name + ")");
  }
  return reinterpret_cast<Function*>(found);
}

}  // namespace

std::string sha256_of_file(const std::string& path) {
  static const auto make_context = from_openssl<void*()>("EVP_MD_CTX_new");
  static const auto free_context = from_openssl<void(void*)>("EVP_MD_CTX_free");
  static const auto sha256 = from_openssl<const void*()>("EVP_sha256");
  static const auto start = from_openssl<int(void*, const void*, void*)>("EVP_DigestInit_ex");
  static const auto add = from_openssl<int(void*, const void*, size_t)>("EVP_DigestUpdate");
  static const auto finish = from_openssl<int(void*, unsigned char*, unsigned int*)>("EVP_DigestFinal_ex");

  const auto close = [](FILE* file) { std::fclose(file); };
  const std::unique_ptr<FILE, decltype(close)> file(std::fopen(path.c_str(), "rb"), close);
  if (file == nullptr) throw_invalid_argument("cannot read '" + path + "': " + std::strerror(errno));
  const std::unique_ptr<void, void (*)(void*)> context(make_context(), free_context);
  bool is_good = context != nullptr && start(context.get(), sha256(), nullptr) == 1;
  std::vector<unsigned char> buffer(1 << 16);
  while (const size_t size = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    is_good = is_good && add(context.get(), buffer.data(), size) == 1;
  }
  if (std::ferror(file.get()) != 0) throw_invalid_argument("cannot read '" + path + "': " + std::strerror(errno));
  std::array<unsigned char, 32> digest;
  is_good = is_good && finish(context.get(), digest.data(), nullptr) == 1;
  if (!is_good) fail(TRITONSERVER_ERROR_INTERNAL, "OpenSSL cannot compute the SHA-256 of '" + path + "'");
  std::string text;
  for (const unsigned char byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

}  // namespace onnx_backend
