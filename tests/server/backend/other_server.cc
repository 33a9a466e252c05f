// Preloaded into a tritonserver, makes it one of another TRITONBACKEND API version (API_MAJOR, API_MINOR).
#include <cstdint>
#include <cstdlib>

extern "C" __attribute__((visibility("default"))) void* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor) {
  *major = static_cast<uint32_t>(std::atoi(std::getenv("API_MAJOR")));
  *minor = static_cast<uint32_t>(std::atoi(std::getenv("API_MINOR")));
  return nullptr;
}
