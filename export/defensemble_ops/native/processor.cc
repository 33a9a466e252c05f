#include "processor.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace defensemble_ops {

#if defined(__x86_64__)

namespace {

constexpr uint32_t bit(int number) { return uint32_t{1} << number; }

struct Features {
  uint32_t base = 0;      // ecx of leaf 1
  uint32_t extended = 0;  // ebx of leaf 7
  uint32_t saved = 0;     // which registers the operating system saves (XCR0)
};

Features read_features() {
  Features found;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit(27)) == 0) return found;  // bit 27: xgetbv can be used
  found.base = c;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) found.extended = b;
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  found.saved = low;
  return found;
}

bool has(uint32_t extended, uint32_t saved) {
  static const Features found = read_features();
  constexpr uint32_t kFma = bit(12);
  return (found.base & kFma) != 0 && (found.extended & extended) == extended && (found.saved & saved) == saved;
}

constexpr uint32_t kYmm = bit(1) | bit(2);
constexpr uint32_t kZmm = kYmm | bit(5) | bit(6) | bit(7);

}  // namespace

bool has_avx2() { return has(bit(5), kYmm); }
bool has_avx512() { return has(bit(16) | bit(17) | bit(30) | bit(31), kZmm); }

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }

#endif

}  // namespace defensemble_ops
