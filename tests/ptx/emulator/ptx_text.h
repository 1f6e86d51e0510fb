// The PTX text as data: what the parser understands of a module, before anything is decoded for execution.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

namespace showo::ptx {

enum class Space : uint8_t { kRegister, kGlobal, kConst, kShared, kLocal, kParam, kGeneric };

// A source position, as .loc gives it. `file` indexes TextModule::files.
struct SourceLine {
  int file = 0;
  int line = 0;
};

// Storage declared by .global, .const, .shared, .local or .param.
struct TextVariable {
  Space space = Space::kGlobal;
  std::string name;
  int64_t bytes = 0;  // 0 for an unsized extern array (dynamic shared memory)
  int64_t alignment = 1;
  int64_t element_bytes = 1;
  bool is_extern = false;
  std::vector<uint8_t> initial;                           // empty: zeros
  std::vector<std::pair<int64_t, std::string>> pointers;  // (byte offset, symbol) of addresses in the initialiser
};

struct TextOperand {
  enum class Kind : uint8_t { kRegister, kImmediate, kSymbol, kAddress, kVector, kSink };
  Kind kind = Kind::kSink;
  std::string name;                // register or symbol; for an address its base ("" if absolute)
  uint64_t value = 0;              // immediate bits, or the address offset
  int float_bits = 0;              // 32 or 64 if the immediate was written as a float
  bool negated = false;            // !%p
  std::string second;              // the predicate of "%r1|%p1"
  std::vector<TextOperand> parts;  // vector elements or an argument list
};

struct TextInstruction {
  int line = 0;
  SourceLine source;
  std::string guard;  // predicate register, "" if none
  bool guard_negated = false;
  std::string opcode;
  std::vector<TextOperand> operands;
};

struct TextFunction {
  std::string name;
  bool is_entry = false;
  bool has_body = false;
  int line = 0;
  int max_threads = 0;  // product of .maxntid / .reqntid, 0 if absent
  std::vector<TextVariable> params;
  std::vector<TextVariable> returns;
  std::vector<TextVariable> locals;                        // .local, .shared and .param inside the body
  std::unordered_map<std::string, std::string> registers;  // name -> type ("b32", "pred", ...)
  std::vector<TextInstruction> body;
  std::unordered_map<std::string, int> labels;  // -> index into body
  std::unordered_map<std::string, std::vector<std::string>> branch_targets;
};

struct TextModule {
  std::string target;
  std::map<int, std::string> files;
  std::vector<TextVariable> variables;
  std::vector<TextFunction> functions;
};

int64_t type_bytes(const std::string& type);  // "f32" -> 4; throws std::runtime_error on an unknown type

// Throws std::runtime_error("ptx line N: ...").
TextModule parse_ptx(const std::string& text);

}  // namespace showo::ptx
