// Drafts -> code: basic blocks, their order, registers, jumps.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>

#include "draft.h"

namespace showo::ptx {

// The work on one function.
class FunctionAssembler {
 public:
  FunctionAssembler(Assembler& a, std::vector<Draft>& drafts, std::vector<Value>& values)
      : a_(a), drafts_(drafts), values_(values) {}

  void run(const std::vector<int>& first_draft) {
    for (Draft& d : drafts_) {
      for (int& target : d.targets) target = first_draft[target];
    }
    std::set<int> leaders = {0};
    for (size_t i = 0; i < drafts_.size(); ++i) {
      for (const int target : drafts_[i].targets) leaders.insert(target);
      if (!drafts_[i].targets.empty() || !drafts_[i].falls_through) leaders.insert(static_cast<int>(i) + 1);
    }
    leaders.erase(static_cast<int>(drafts_.size()));
    std::vector<int> block_of(drafts_.size());
    std::vector<std::vector<int>> blocks;
    for (size_t i = 0; i < drafts_.size(); ++i) {
      if (leaders.count(static_cast<int>(i))) blocks.emplace_back();
      blocks.back().push_back(static_cast<int>(i));
      block_of[i] = static_cast<int>(blocks.size()) - 1;
    }
    std::vector<std::vector<int>> successors(blocks.size());
    std::vector<int> fall(blocks.size(), -1);
    for (size_t b = 0; b < blocks.size(); ++b) {
      const Draft& last = drafts_[blocks[b].back()];
      for (const int target : last.targets) successors[b].push_back(block_of[target]);
      if (last.falls_through) {
        fall[b] = static_cast<int>(b) + 1;
        successors[b].push_back(fall[b]);
      }
    }
    const std::vector<std::vector<int>> plain = successors;
    const std::vector<int> order = layout_blocks(successors);
    emit(blocks, plain, successors, fall, order);
  }

 private:
  Assembler& a_;
  std::vector<Draft>& drafts_;
  std::vector<Value>& values_;

  void emit(const std::vector<std::vector<int>>& blocks, const std::vector<std::vector<int>>& plain,
            const std::vector<std::vector<int>>& laid, const std::vector<int>& fall, const std::vector<int>& order) {
    // Registers, over the real blocks in execution order.
    std::vector<std::vector<int>> ordered, next;
    std::unordered_map<int, int> rank;
    for (const int b : order) {
      if (b >= kLatch) continue;
      rank[b] = static_cast<int>(ordered.size());
      ordered.push_back(blocks[b]);
    }
    next.resize(ordered.size());
    for (const auto& [b, r] : rank) {
      for (const int s : plain[b]) next[r].push_back(rank.at(s));
    }
    int live = 0;
    a_.registers_end_ = allocate_registers(drafts_, ordered, next, values_, a_.registers_end_, live);
    a_.program_.live_registers += live;

    // A successor as seen from block b, after back edges were led through latches.
    const auto via = [&](int b, size_t i) { return laid[b][i]; };
    std::unordered_map<int, uint32_t> start;
    std::vector<std::pair<size_t, int>> jumps;  // (pc, block) to patch
    std::vector<std::pair<std::pair<int, size_t>, int>> table_jumps;
    a_.entry_pc_.push_back(static_cast<uint32_t>(a_.program_.code.size()));
    const auto jump_to = [&](int block) {
      Instr jump;
      jump.fn = OpTable::instance().find("jump")->fn;
      jump.synthetic = true;
      jumps.emplace_back(a_.program_.code.size(), block);
      a_.program_.code.push_back(jump);
    };
    for (size_t k = 0; k < order.size(); ++k) {
      const int b = order[k];
      start[b] = static_cast<uint32_t>(a_.program_.code.size());
      if (b >= kLatch) {
        jump_to(b - kLatch);
        continue;
      }
      for (const int at : blocks[b]) append(drafts_[at]);
      const Draft& last = drafts_[blocks[b].back()];
      const size_t pc = a_.program_.code.size() - 1;
      if (last.targets.size() == 1 && last.instr.extra < 0 && last.ops.empty()) jumps.emplace_back(pc, via(b, 0));
      if (!last.targets.empty() && !last.ops.empty()) {  // brx.idx
        a_.program_.code[pc].extra = static_cast<int>(a_.program_.tables.size());
        a_.program_.tables.emplace_back(last.targets.size());
        for (size_t i = 0; i < last.targets.size(); ++i) {
          table_jumps.push_back({{a_.program_.code[pc].extra, i}, via(b, i)});
        }
      }
      if (fall[b] >= 0) {
        const int to = via(b, laid[b].size() - 1);
        if (k + 1 >= order.size() || order[k + 1] != to) jump_to(to);
      }
    }
    for (const auto& [pc, block] : jumps) a_.program_.code[pc].target = start.at(block);
    for (const auto& [cell, block] : table_jumps) a_.program_.tables[cell.first][cell.second] = start.at(block);
  }

  void append(const Draft& d) {
    Instr in = d.instr;
    if (d.callee >= 0) a_.pending_calls_.emplace_back(a_.program_.code.size(), d.callee);
    in.ops = reinterpret_cast<const uint32_t*>(a_.program_.operand_pool.size());  // an index until the pool is complete
    const auto place = [&](int v) {
      if (values_[v].kind != Value::kRegister) a_.fixed_.emplace_back(a_.program_.operand_pool.size(), values_[v]);
      a_.program_.operand_pool.push_back(values_[v].offset);
    };
    for (const int v : d.ops) place(v);
    if (d.guard >= 0) in.guard = values_[d.guard].offset;
    a_.program_.code.push_back(in);
  }
};

void Assembler::add_function(std::vector<Draft>& drafts, const std::vector<int>& first_draft,
                             std::vector<Value>& values) {
  FunctionAssembler(*this, drafts, values).run(first_draft);
}

void Assembler::finish() {
  uint32_t end = registers_end_;
  std::map<std::tuple<int, int, uint64_t>, uint32_t> places;
  for (const auto& [index, value] : fixed_) {
    const uint64_t key = value.kind == Value::kConstant ? value.constant : static_cast<uint64_t>(value.which);
    const auto [found, fresh] = places.try_emplace({value.kind, value.bits, key}, end);
    if (fresh) {
      if (value.kind == Value::kConstant) {
        program_.constants.push_back({end, value.bits, value.constant});
      } else {
        program_.specials.push_back({end, value.bits == 64, value.which});
      }
      end += value.bits == 64 ? 256 : 128;
    }
    program_.operand_pool[index] = found->second;
  }
  program_.register_bytes = end + 256;
  for (const auto& [pc, callee] : pending_calls_) program_.code[pc].target = entry_pc_[callee];
  for (Instr& in : program_.code) in.ops = program_.operand_pool.data() + reinterpret_cast<uintptr_t>(in.ops);
}

}  // namespace showo::ptx
