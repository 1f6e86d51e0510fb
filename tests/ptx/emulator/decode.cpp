// Text -> drafts: looks every opcode up in the table, resolves operands, gives variables their addresses.
#include <algorithm>
#include <map>
#include <stdexcept>

#include "draft.h"
#include "names.h"
#include "storage.h"

namespace showo::ptx {
namespace {

using Kind = TextOperand::Kind;

class Builder {
 public:
  Builder(const TextModule& module, const SymbolTable& symbols) : module_(module), symbols_(symbols) {}

  std::unique_ptr<Program> build(const std::string& kernel) {
    program_ = std::make_unique<Program>();
    program_->name = kernel;
    program_->files = module_.files;
    collect(find(kernel), {});
    const TextFunction& entry = *functions_[0];
    program_->max_threads = entry.max_threads;
    storage_ = std::make_unique<Storage>(module_, functions_, *program_);
    Assembler assembler(*program_);
    for (size_t f = 0; f < functions_.size(); ++f) {
      decode(static_cast<int>(f));
      assembler.add_function(drafts_, first_draft_, values_);
    }
    assembler.finish();
    return std::move(program_);
  }

 private:
  const TextModule& module_;
  const SymbolTable& symbols_;
  std::unique_ptr<Program> program_;
  std::vector<const TextFunction*> functions_;  // the entry first, then what it calls
  std::unique_ptr<Storage> storage_;

  // Of the function in hand.
  const TextFunction* function_ = nullptr;
  std::vector<Value> values_;
  std::unordered_map<std::string, int> register_values_;
  std::map<std::pair<int, uint64_t>, int> constant_values_;
  std::vector<Draft> drafts_;
  std::vector<int> first_draft_;  // of every statement

  [[noreturn]] void fail(const TextInstruction& in, const std::string& what) const {
    throw std::runtime_error("kernel '" + program_->name + "', ptx line " + std::to_string(in.line) + ": " + what);
  }

  const TextFunction* find(const std::string& name) const {
    for (const TextFunction& f : module_.functions) {
      if (f.name == name && f.has_body) return &f;
    }
    throw std::runtime_error("no function '" + name + "' with a body in this PTX");
  }

  int index_of(const std::string& name) const {
    for (size_t i = 0; i < functions_.size(); ++i) {
      if (functions_[i]->name == name) return static_cast<int>(i);
    }
    return -1;
  }

  void collect(const TextFunction* f, std::vector<std::string> callers) {
    if (std::count(callers.begin(), callers.end(), f->name)) {
      throw std::runtime_error("recursive device function '" + f->name + "' is not supported");
    }
    if (index_of(f->name) < 0) functions_.push_back(f);
    callers.push_back(f->name);
    for (const TextInstruction& in : f->body) {
      if (in.opcode.compare(0, 4, "call") != 0) continue;
      for (const TextOperand& o : in.operands) {
        if (o.kind == Kind::kSymbol && o.name != "__assertfail") collect(find(o.name), callers);
      }
    }
  }

  // ---- values -----------------------------------------------------------------------------------------------------

  int new_value(int bits) {
    Value v;
    v.bits = bits;
    values_.push_back(v);
    return static_cast<int>(values_.size()) - 1;
  }

  int constant(int bits, uint64_t value) {
    if (bits == 32) value &= 0xffffffffu;
    const auto key = std::make_pair(bits, value);
    const auto found = constant_values_.find(key);
    if (found != constant_values_.end()) return found->second;
    const int v = new_value(bits);
    values_[v].kind = Value::kConstant;
    values_[v].constant = value;
    return constant_values_[key] = v;
  }

  int register_value(const TextInstruction& in, const std::string& name, int bits) {
    if (const SpecialRegister* special = special_register(name)) {
      const int v = new_value(bits);
      values_[v].kind = Value::kSpecial;
      values_[v].which = *special;
      return v;
    }
    if (name == "WARP_SZ") return constant(bits, 32);
    const auto declared = function_->registers.find(name);
    if (declared == function_->registers.end()) fail(in, "unknown register '" + name + "' in '" + in.opcode + "'");
    const int own = declared->second == "pred" ? 1 : type_bytes(declared->second) == 8 ? 64 : 32;
    if (own != bits) {
      fail(in, "operand '" + name + "' of '" + in.opcode + "' has " + std::to_string(own) + " bits, expected " +
                   std::to_string(bits));
    }
    const auto found = register_values_.find(name);
    if (found != register_values_.end()) return found->second;
    return register_values_[name] = new_value(bits);
  }

  uint64_t symbol_address(const TextInstruction& in, const std::string& name) const {
    if (const auto* place = storage_->find(*function_, name)) return place->second;
    if (symbols_.known(name)) return symbols_.address(name);
    fail(in, "unknown symbol '" + name + "'");
  }

  int source(const TextInstruction& in, const TextOperand& o, int bits) {
    switch (o.kind) {
      case Kind::kRegister: {
        if (bits == 32 && in.opcode.rfind("cvt.", 0) == 0 && is_wide(o.name)) {  // cvt may read the low half
          return synthetic("cvt.u32.u64", 32, register_value(in, o.name, 64));
        }
        const int v = register_value(in, o.name, bits);
        return o.negated ? synthetic("not.pred", 1, v) : v;
      }
      case Kind::kImmediate:
        if (bits == 1) return constant(1, o.value ? kFull : 0);
        if (o.float_bits == 32 && bits == 64) {
          return constant(64, bits_as<uint64_t>(static_cast<double>(bits_as<float>(static_cast<uint32_t>(o.value)))));
        }
        return constant(bits, o.value);
      case Kind::kSymbol:
        return constant(bits, symbol_address(in, o.name) + o.value);
      default:
        fail(in, "unexpected operand in '" + in.opcode + "'");
    }
  }

  bool is_wide(const std::string& name) const {
    const auto declared = function_->registers.find(name);
    return declared != function_->registers.end() && declared->second != "pred" && type_bytes(declared->second) == 8;
  }

  // An instruction of one operand that is not in the text: its result, a value of `bits` bits.
  int synthetic(const char* opcode, int bits, int operand) {
    Draft d;
    const OpEntry& entry = *OpTable::instance().find(opcode);
    const int v = new_value(bits);
    d.instr.fn = entry.fn;
    d.instr.synthetic = true;
    d.ops = {v, operand};
    d.defines = {true, false};
    drafts_.push_back(d);
    return v;
  }

  // ---- one function -----------------------------------------------------------------------------------------------

  void decode(int index) {
    function_ = functions_[index];
    values_.clear();
    register_values_.clear();
    constant_values_.clear();
    drafts_.clear();
    first_draft_.clear();
    for (const TextInstruction& in : function_->body) {
      first_draft_.push_back(static_cast<int>(drafts_.size()));
      instruction(in);
    }
    first_draft_.push_back(static_cast<int>(drafts_.size()));
    Draft end;  // falling off the end returns
    end.instr.fn = OpTable::instance().find("ret")->fn;
    end.instr.synthetic = true;
    end.falls_through = false;
    drafts_.push_back(end);
  }

  int label(const TextInstruction& in, const std::string& name) const {
    const auto found = function_->labels.find(name);
    if (found == function_->labels.end()) fail(in, "unknown label '" + name + "'");
    return found->second;  // a statement: labels may lie ahead, so drafts are found at assembly
  }
  void instruction(const TextInstruction& in) {
    uint16_t flags = 0;
    std::string name = canonical_opcode(in.opcode, flags);
    if (name == "call") return call(in);
    std::vector<TextOperand> operands;
    for (const TextOperand& o : in.operands) {
      if (o.kind == Kind::kVector) {
        operands.insert(operands.end(), o.parts.begin(), o.parts.end());
      } else {
        operands.push_back(o);
      }
    }
    name = specialised(in, name, operands);
    const OpEntry* entry = OpTable::instance().find(name);
    if (entry == nullptr) fail(in, "unknown instruction '" + in.opcode + "'");

    Draft d;
    if (!in.guard.empty()) d.guard = register_value(in, in.guard, 1);
    bind(in, *entry, operands, d);
    d.instr.fn = entry->fn;
    d.instr.cls = entry->cls;
    if (in.opcode.find(".param") != std::string::npos) d.instr.cls = InstrClass::kParam;
    d.instr.imm = entry->imm;
    d.instr.flags |= flags | entry->flags;
    d.instr.guard_flip = in.guard_negated ? kFull : 0;
    d.instr.line = in.line;
    d.instr.source = in.source;
    note_shared(name, flags | entry->flags);
    if (name == "bra") {
      d.targets = {label(in, operands[0].name)};
      d.falls_through = d.guard >= 0;
    } else if (name == "brx.idx") {
      for (const std::string& target : function_->branch_targets.at(operands[1].name))
        d.targets.push_back(label(in, target));
      d.falls_through = d.guard >= 0;
    } else if (name == "ret" || name == "exit" || name == "trap") {
      d.falls_through = d.guard >= 0;
    }
    drafts_.push_back(std::move(d));
  }

  // Names that depend on the operands: parameters of device functions live in the thread's frame, mov packs vectors.
  std::string specialised(const TextInstruction& in, std::string name, const std::vector<TextOperand>& operands) const {
    if (name.compare(0, 3, "ld.") == 0 || name.compare(0, 3, "st.") == 0) {
      const TextOperand& value = operands.size() > 1 && operands[0].kind == Kind::kAddress ? operands[1] : operands[0];
      if (is_wide(value.name) && type_bytes(name.substr(name.rfind('.') + 1)) < 8) name += "/wide";
    }
    const size_t param = name.find(".param");
    if (param != std::string::npos && name.compare(0, 4, "cvta") != 0) {
      bool in_frame = !function_->is_entry;
      for (const TextOperand& o : operands) {
        if (o.kind != Kind::kAddress || o.name[0] == '%') continue;
        const auto* place = storage_->find(*function_, o.name);
        if (place != nullptr) in_frame = place->first == Space::kLocal;
      }
      if (in_frame) return name.substr(0, param) + ".local" + name.substr(param + 6);
    }
    if (name.find(".red.") != std::string::npos && name.compare(0, 3, "bar") == 0 && operands.size() == 4)
      return name + "/counted";
    if (name.compare(0, 4, "mov.") == 0 && operands.size() > 2) {
      const bool packs = in.operands[0].kind != Kind::kVector;
      return std::string(packs ? "pack" : "unpack") + std::to_string(operands.size() - 1) + "." +
             (type_bytes(name.substr(4)) == 8 ? "b64" : "b32");
    }
    return name;
  }

  void note_shared(const std::string& name, uint16_t flags) {
    if ((flags & (kRead | kWrite)) == 0) return;
    const bool shared = name.find(".shared") != std::string::npos;
    const bool explicit_other = name.find(".global") != std::string::npos || name.find(".local") != std::string::npos ||
                                name.find(".const") != std::string::npos || name.find(".param") != std::string::npos;
    if (!shared && explicit_other) return;
    const std::string type = name.substr(name.rfind('.') + 1, name.find('/') - name.rfind('.') - 1);
    if (type.size() > 1 && (type.substr(1) == "8" || type.substr(1) == "16" || type == "f16" || type == "bf16")) {
      if (name.compare(0, 8, "ldmatrix") != 0) program_->narrow_shared = true;
    }
    if (flags & (kAtomicAccess | kStrong)) program_->shared_atomics = true;
  }

  void bind(const TextInstruction& in, const OpEntry& entry, const std::vector<TextOperand>& operands, Draft& d) {
    size_t next = 0;
    int addresses = 0;
    bool optional = false;
    const auto push = [&](int value, bool defines) {
      d.ops.push_back(value);
      d.defines.push_back(defines);
    };
    const auto destination = [&](const TextOperand& o, int bits) {
      if (o.kind == Kind::kSink) return push(new_value(bits), true);
      if (o.kind != Kind::kRegister) fail(in, "'" + in.opcode + "' needs a register as its destination");
      push(register_value(in, o.name, bits), true);
    };
    for (const char code : entry.signature) {
      if (code == '?') {
        optional = true;
        continue;
      }
      if (code == '|') {  // the second half of the operand just bound
        const TextOperand& o = operands[next - 1];
        push(o.second.empty() || o.second == "_" ? new_value(1) : register_value(in, o.second, 1), true);
        continue;
      }
      if (next >= operands.size()) {
        if (!optional) fail(in, "'" + in.opcode + "' has too few operands");
        push(code == 'p' ? constant(1, kFull) : constant(32, kFull), false);
        continue;
      }
      const TextOperand& o = operands[next++];
      switch (code) {
        case 'd':
          destination(o, 32);
          break;
        case 'D':
          destination(o, 64);
          break;
        case 'q':
          destination(o, 1);
          break;
        case 'Q':
          destination(o, 1);
          push(o.second.empty() || o.second == "_" ? new_value(1) : register_value(in, o.second, 1), true);
          break;
        case 's':
          push(source(in, o, 32), false);
          break;
        case 'S':
          push(source(in, o, 64), false);
          break;
        case 'p':
          push(source(in, o, 1), false);
          break;
        case 'L':
          break;  // labels are resolved by the caller
        case 'A':
          push(address(in, o, d, addresses++), false);
          break;
        default:
          fail(in, "bad signature");
      }
    }
    if (next < operands.size()) fail(in, "'" + in.opcode + "' has too many operands");
  }

  int address(const TextInstruction& in, const TextOperand& o, Draft& d, int which) {
    if (o.kind != Kind::kAddress) fail(in, "'" + in.opcode + "' needs an address");
    d.instr.offset[which] = static_cast<int32_t>(static_cast<int64_t>(o.value));
    if (o.name.empty()) return constant(64, 0);
    if (o.name[0] != '%' && function_->registers.count(o.name) == 0) return constant(64, symbol_address(in, o.name));
    const auto declared = function_->registers.find(o.name);
    if (declared == function_->registers.end()) fail(in, "unknown register '" + o.name + "'");
    const bool wide = type_bytes(declared->second) == 8;
    if (!wide) d.instr.flags |= static_cast<uint16_t>(kNarrowAddress << which);
    return register_value(in, o.name, wide ? 64 : 32);
  }

  void call(const TextInstruction& in) {
    std::vector<TextOperand> lists[2];
    std::string callee;
    for (const TextOperand& o : in.operands) {
      if (o.kind == Kind::kVector) {
        lists[callee.empty() ? 0 : 1] = o.parts;
      } else if (o.kind == Kind::kSymbol && callee.empty()) {
        callee = o.name;
      } else {
        fail(in, "indirect calls are not supported");
      }
    }
    Draft d;
    if (!in.guard.empty()) d.guard = register_value(in, in.guard, 1);
    d.instr.guard_flip = in.guard_negated ? kFull : 0;
    d.instr.line = in.line;
    d.instr.source = in.source;
    d.instr.cls = InstrClass::kBranch;
    if (callee == "__assertfail") {
      d.instr.fn = OpTable::instance().find("assertfail")->fn;
    } else {
      d.instr.fn = OpTable::instance().find("call")->fn;
      d.callee = index_of(callee);
      const TextFunction& f = *functions_[d.callee];
      if (lists[1].size() != f.params.size() || lists[0].size() != f.returns.size()) {
        fail(in, "call of '" + callee + "' has the wrong number of arguments");
      }
      CallSite site;
      for (size_t i = 0; i < f.params.size(); ++i) {
        site.arguments.push_back({storage_->find(f, f.params[i].name)->second,
                                  storage_->find(*function_, lists[1][i].name)->second,
                                  static_cast<uint32_t>(f.params[i].bytes)});
      }
      for (size_t i = 0; i < f.returns.size(); ++i) {
        site.results.push_back({storage_->find(*function_, lists[0][i].name)->second,
                                storage_->find(f, f.returns[i].name)->second,
                                static_cast<uint32_t>(f.returns[i].bytes)});
      }
      d.instr.extra = static_cast<int>(program_->calls.size());
      program_->calls.push_back(site);
    }
    drafts_.push_back(std::move(d));
  }
};

}  // namespace

std::string Program::source_name(const SourceLine& s) const {
  const auto found = files.find(s.file);
  if (found == files.end() || s.line == 0) return "";
  return found->second + ":" + std::to_string(s.line);
}

std::unique_ptr<Program> build_program(const TextModule& module, const std::string& kernel,
                                       const SymbolTable& symbols) {
  return Builder(module, symbols).build(kernel);
}

const char* class_name(InstrClass c) {
  static const char* kNames[] = {"mma",    "ldmatrix", "shared", "global",  "cp.async", "shuffle",
                                 "fp32",   "half",     "fp64",   "integer", "special",  "convert",
                                 "branch", "barrier",  "atomic", "local",   "param",    "move"};
  return kNames[static_cast<int>(c)];
}

}  // namespace showo::ptx
