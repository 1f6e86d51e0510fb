#include "ops.h"

namespace showo::ptx {

const OpTable& OpTable::instance() {
  static const OpTable table = [] {
    OpTable t;
    add_integer_ops(t);
    add_bit_ops(t);
    add_float_ops(t);
    add_half_ops(t);
    add_conversions(t);
    add_compare_ops(t);
    add_memory_ops(t);
    add_atomic_ops(t);
    add_async_ops(t);
    add_matrix_ops(t);
    add_warp_ops(t);
    add_control_ops(t);
    return t;
  }();
  return table;
}

}  // namespace showo::ptx
