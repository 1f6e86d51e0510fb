// Between text and program: instructions whose operands are values, not yet places in a register file.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace showo::ptx {

struct Value {
  enum Kind : uint8_t { kRegister, kConstant, kSpecial } kind = kRegister;
  int bits = 32;  // 1, 32 or 64
  uint64_t constant = 0;
  SpecialRegister which = SpecialRegister::kTidX;
  uint32_t offset = kNone;  // its place, once allocated
};

struct Draft {
  Instr instr;
  std::vector<int> ops;       // indices of values
  std::vector<bool> defines;  // same length
  int guard = -1;
  std::vector<int> targets;  // statements of the function that may follow, besides the next one
  bool falls_through = true;
  int callee = -1;  // function index
};

// Gives every register value an offset at or after `first` and returns the end of the area. `live` becomes the
// largest number of 32-bit registers alive at once.
uint32_t allocate_registers(const std::vector<Draft>& code, const std::vector<std::vector<int>>& blocks,
                            const std::vector<std::vector<int>>& successors, std::vector<Value>& values, uint32_t first,
                            int& live);

// Turns the drafts of functions, the entry first, into the code of a program.
class Assembler {
 public:
  explicit Assembler(Program& program) : program_(program) {}
  // `first_draft[s]` is the draft that statement s begins with; targets of drafts are statements.
  void add_function(std::vector<Draft>& drafts, const std::vector<int>& first_draft, std::vector<Value>& values);
  void finish();  // places constants, resolves calls

 private:
  friend class FunctionAssembler;
  Program& program_;
  uint32_t registers_end_ = 0;
  std::vector<uint32_t> entry_pc_;
  std::vector<std::pair<size_t, int>> pending_calls_;  // (pc, callee)
  std::vector<std::pair<uint32_t, Value>> fixed_;      // constants and specials: (place in the operand pool, value)
};

}  // namespace showo::ptx
