// The decoded form of one kernel: a flat array of instructions in an order that makes "lowest pc first" reconverge.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ptx_text.h"

namespace showo::ptx {

struct Warp;
struct Instr;
using Handler = void (*)(Warp&, const Instr&);

enum class InstrClass : uint8_t {
  kMma,
  kLdmatrix,
  kShared,
  kGlobal,
  kAsyncCopy,
  kShuffle,
  kFloat,
  kHalf,
  kDouble,
  kInteger,
  kSpecial,
  kConvert,
  kBranch,
  kBarrier,
  kAtomic,
  kLocal,
  kParam,
  kMove,
  kCount
};
const char* class_name(InstrClass c);

constexpr uint32_t kNone = 0xffffffffu;

struct Instr {
  Handler fn = nullptr;
  const uint32_t* ops = nullptr;  // byte offsets into the warp's register file
  int64_t imm = 0;                // a modifier of the operation
  int32_t offset[2] = {0, 0};     // of the addresses
  uint32_t guard = kNone;         // byte offset of the guard predicate
  uint32_t guard_flip = 0;        // ~0 for @!p
  uint32_t target = 0;            // branch target or callee's first pc
  uint16_t flags = 0;
  InstrClass cls = InstrClass::kMove;
  bool synthetic = false;  // inserted by the layout; not counted
  int extra = -1;          // index into Program::tables (brx.idx) or Program::calls
  int line = 0;            // PTX line
  SourceLine source;
};

enum InstrFlags : uint16_t {
  kStrong = 1,  // volatile, relaxed, acquire, release: synchronises, never races
  kRead = 2,
  kWrite = 4,
  kAtomicAccess = 8,
  kNarrowAddress = 16,  // the first address is a 32-bit register
  kNarrowAddress2 = 32,
};

enum class SpecialRegister : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneId,
  kWarpId,
  kNwarpId,
  kSmId,
  kNsmId,
  kLanemaskEq,
  kLanemaskLe,
  kLanemaskLt,
  kLanemaskGe,
  kLanemaskGt,
  kDynamicSmem,
  kTotalSmem,
  kClock,
  kClock64,
  kGlobaltimer,
  kGridId
};

// Slots of the register file that hold the same value everywhere, or a special register.
struct ConstantSlot {
  uint32_t offset;
  int bits;  // 1: a predicate, 32 or 64
  uint64_t value;
};
struct SpecialSlot {
  uint32_t offset;
  bool wide;
  SpecialRegister which;
};

// A byte range copied between the per-thread frames of caller and callee.
struct FrameCopy {
  uint32_t to, from, bytes;
};
struct CallSite {
  std::vector<FrameCopy> arguments, results;
};

struct Program {
  std::string name;
  std::string source_name(const SourceLine& s) const;
  std::vector<Instr> code;
  std::vector<uint32_t> operand_pool;
  std::vector<std::vector<uint32_t>> tables;
  std::vector<CallSite> calls;
  std::vector<ConstantSlot> constants;
  std::vector<SpecialSlot> specials;
  uint32_t register_bytes = 0;  // of one warp
  int live_registers = 0;       // the most 32-bit values alive at once, an estimate of what ptxas needs
  uint32_t frame_bytes = 0;     // local memory of one thread, .param variables of calls included
  uint32_t static_shared = 0;   // bytes after kSharedReserved
  bool narrow_shared = false;   // touches shared memory in pieces smaller than 4 bytes
  bool shared_atomics = false;
  uint32_t param_bytes = 0;
  std::vector<std::pair<uint32_t, uint32_t>> params;  // (offset, bytes) of every kernel parameter
  int max_threads = 0;                                // .maxntid
  std::map<int, std::string> files;
  std::shared_ptr<const std::vector<std::string>> text;  // PTX lines, for messages
};

constexpr uint32_t kSharedReserved = 1024;      // sm_80 keeps the first KiB of every block
constexpr uint64_t kSharedWindow = 1ull << 56;  // generic addresses of shared memory
constexpr uint64_t kLocalWindow = 2ull << 56;   // and of local memory
constexpr uint32_t kMaxDepth = 32;              // nested calls

// Address of a module variable (.global, .const); throws if unknown.
struct SymbolTable {
  virtual uint64_t address(const std::string& name) const = 0;
  virtual bool known(const std::string& name) const = 0;
  virtual ~SymbolTable() = default;
};

// Throws std::runtime_error naming an instruction it does not know.
std::unique_ptr<Program> build_program(const TextModule& module, const std::string& kernel, const SymbolTable& symbols);

// Execution order of basic blocks (weak topological order): a block comes before its successors except along back
// edges, and loops are contiguous. kLatch + head stands for an inserted block at the end of head's loop that jumps
// to head: back edges of a loop with several of them meet there, so that lanes wait for each other.
constexpr int kLatch = 1 << 28;
std::vector<int> layout_blocks(std::vector<std::vector<int>>& successors);

}  // namespace showo::ptx
