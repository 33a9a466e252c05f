// Which instructions this processor and its operating system offer.
//
// Not __builtin_cpu_supports: built with zig (0.17.1), it is false for every instruction set.
#pragma once

namespace defensemble_ops {

bool has_avx2();    // AVX2 and FMA
bool has_avx512();  // AVX-512 F, VL, DQ, BW, and FMA

}  // namespace defensemble_ops
