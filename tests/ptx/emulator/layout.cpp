// Weak topological order of a control-flow graph (F. Bourdoncle, 1993), flattened.
//
// The executor always advances the lanes with the lowest pc. In this order that makes lanes meet again at the earliest
// possible point, also where a branch has no post-dominator because one side returns early.
#include <algorithm>
#include <limits>

#include "program.h"

namespace showo::ptx {
namespace {

class Layout {
 public:
  explicit Layout(std::vector<std::vector<int>>& successors)
      : successors_(successors), depth_first_(successors.size(), 0) {}

  std::vector<int> order() {
    std::vector<int> result;
    visit(0, result);
    std::reverse(result.begin(), result.end());
    return result;
  }

 private:
  static constexpr int kDone = std::numeric_limits<int>::max();
  std::vector<std::vector<int>>& successors_;
  std::vector<int> depth_first_;
  std::vector<int> stack_;
  int count_ = 0;

  // Appends in reverse order. Returns the lowest depth-first number that is reachable.
  int visit(int block, std::vector<int>& reversed) {
    stack_.push_back(block);
    int head = depth_first_[block] = ++count_;
    bool loop = false;
    for (const int next : successors_[block]) {
      const int lowest = depth_first_[next] == 0 ? visit(next, reversed) : depth_first_[next];
      if (lowest <= head) head = lowest, loop = true;
    }
    if (head != depth_first_[block]) return head;
    depth_first_[block] = kDone;
    int member = pop();
    if (!loop) {
      reversed.push_back(block);
      return head;
    }
    for (; member != block; member = pop()) depth_first_[member] = 0;
    component(block, reversed);
    return head;
  }

  int pop() {
    const int top = stack_.back();
    stack_.pop_back();
    return top;
  }

  void component(int head, std::vector<int>& reversed) {
    std::vector<int> members;
    const std::vector<int> next = successors_[head];
    for (const int block : next) {
      if (depth_first_[block] == 0) visit(block, members);
    }
    members.push_back(head);
    int back_edges = 0;
    for (const int block : members) {
      if (block < kLatch) back_edges += std::count(successors_[block].begin(), successors_[block].end(), head) != 0;
    }
    if (back_edges > 1) {
      for (const int block : members) {
        if (block < kLatch) std::replace(successors_[block].begin(), successors_[block].end(), head, kLatch + head);
      }
      reversed.push_back(kLatch + head);
    }
    reversed.insert(reversed.end(), members.begin(), members.end());
  }
};

}  // namespace

std::vector<int> layout_blocks(std::vector<std::vector<int>>& successors) { return Layout(successors).order(); }

}  // namespace showo::ptx
