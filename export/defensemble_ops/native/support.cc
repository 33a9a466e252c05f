#include "support.h"

#include <algorithm>

namespace defensemble_ops {

int32_t Support::row(int position, int channel) const {
  const auto first = channels_.begin() + starts_[position], last = channels_.begin() + starts_[position + 1];
  const auto found = std::lower_bound(first, last, static_cast<uint16_t>(channel));
  return found != last && *found == channel ? static_cast<int32_t>(found - channels_.begin()) : -1;
}

}  // namespace defensemble_ops
