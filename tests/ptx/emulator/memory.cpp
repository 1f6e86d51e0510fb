#include "memory.h"

#include <algorithm>
#include <cstring>

namespace showo::ptx {
namespace {

InstrCount& count_of(Warp& w, const Instr& in) {
  return w.block->counters.by_instr[static_cast<size_t>(&in - w.block->program.code.data())];
}

std::string hex(uint64_t v) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(v));
  return text;
}

// True if lane i of a full warp accesses bytes [i * bytes, (i + 1) * bytes) after lane 0's address.
bool consecutive(const Addresses& a, uint32_t lanes, uint32_t bytes) {
  if (lanes != kFull) return false;
  uint64_t difference = 0;
  for (uint32_t i = 0; i < kLanes; ++i) difference |= a.at[i] - a.at[0] - uint64_t{i} * bytes;
  return difference == 0;
}

void count_sectors(InstrCount& count, const Addresses& a, uint32_t lanes, uint32_t bytes) {
  uint64_t sorted[kLanes];
  int n = 0;
  bool ordered = true;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    sorted[n] = a.at[__builtin_ctz(rest)];
    ordered &= n == 0 || sorted[n - 1] <= sorted[n];
    ++n;
  }
  if (!ordered) std::sort(sorted, sorted + n);
  uint64_t sectors = 0, unique = 0, next_sector = 0, end = 0;
  for (int i = 0; i < n; ++i) {
    const uint64_t first = std::max(sorted[i] / 32, next_sector), last = (sorted[i] + bytes - 1) / 32;
    if (first <= last) sectors += last - first + 1, next_sector = last + 1;
    const uint64_t from = std::max(sorted[i], end), to = sorted[i] + bytes;
    if (from < to) unique += to - from, end = to;
  }
  count.units += sectors;
  count.least += (unique + 31) / 32;
}

Region& find_region(Warp& w, const Instr& in, uint64_t address, uint32_t bytes, int lane) {
  Block& block = *w.block;
  const std::vector<Region*>& regions = block.launch.regions;
  uint32_t& cached = block.region_cache[static_cast<size_t>(&in - block.program.code.data())];
  if (cached < regions.size() && regions[cached]->holds(address, bytes)) return *regions[cached];
  for (uint32_t i = 0; i < regions.size(); ++i) {
    if (regions[i]->holds(address, bytes)) {
      cached = i;
      return *regions[i];
    }
  }
  throw Finding("out-of-bounds",
                "global address " + hex(address) + " + " + std::to_string(bytes) + " bytes " +
                    RegionTable::instance().describe(address, bytes),
                lane);
}

// memchr for the short pieces that make up most accesses.
bool has_hole(const uint8_t* written, uint32_t bytes) {
  const auto zero_byte = [](uint64_t v) { return (v - 0x0101010101010101ull) & ~v & 0x8080808080808080ull; };
  if (bytes == 16 || bytes == 8) {
    uint64_t word[2];
    std::memcpy(word, written, 8);
    std::memcpy(word + 1, written + bytes - 8, 8);
    return (zero_byte(word[0]) | zero_byte(word[1])) != 0;
  }
  return std::memchr(written, kNeverWritten, bytes) != nullptr;
}

void note(Region& r, uint64_t address, uint32_t bytes, int lane, Access access) {
  const uint64_t offset = address - r.base;
  if (access != Access::kWrite) {
    if (has_hole(&r.written[offset], bytes)) {
      const void* hole = std::memchr(&r.written[offset], kNeverWritten, bytes);
      const auto at = static_cast<uint64_t>(static_cast<const uint8_t*>(hole) - r.written.data());
      throw Finding("uninitialised-global",
                    "reads byte " + std::to_string(at) + " of '" + r.name + "' (address " + hex(r.base + at) +
                        "), which nothing has written",
                    lane);
    }
    std::memset(&r.read[offset], 1, bytes);
  }
  if (access != Access::kRead) {
    if (r.read_only)
      throw Finding("read-only", "writes to '" + r.name + "' (address " + hex(address) + "), which is read-only", lane);
    std::memset(&r.written[offset], kWrittenNow, bytes);
  }
}

void check_alignment(const Addresses& a, uint32_t lanes, uint32_t alignment, const char* space) {
  uint64_t low = 0;
  for (uint32_t i = 0; i < kLanes; ++i) low |= lanes >> i & 1 ? a.at[i] : 0;
  if ((low & (alignment - 1)) == 0) return;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (a.at[lane] & (alignment - 1)) {
      throw Finding(
          "misaligned",
          std::string(space) + " address " + hex(a.at[lane]) + " is not a multiple of " + std::to_string(alignment),
          lane);
    }
  }
}

}  // namespace

Addresses lane_addresses(Warp& w, const Instr& in, int op, int which) {
  Addresses a;
  const int64_t offset = in.offset[which];
  if (in.flags & (kNarrowAddress << which)) {
    const auto* base = w.lanes<uint32_t>(in.ops[op]);
    for (int i = 0; i < kLanes; ++i) a.at[i] = static_cast<uint32_t>(base[i] + static_cast<uint32_t>(offset));
  } else {
    const auto* base = w.lanes<uint64_t>(in.ops[op]);
    for (int i = 0; i < kLanes; ++i) a.at[i] = base[i] + static_cast<uint64_t>(offset);
  }
  return a;
}

void touch_global(Warp& w, const Instr& in, const Addresses& a, uint32_t lanes, uint32_t bytes, uint32_t alignment,
                  Access access) {
  check_alignment(a, lanes, alignment, "global");
  InstrCount& count = count_of(w, in);
  if (consecutive(a, lanes, bytes)) {
    const uint32_t total = bytes * kLanes;
    const std::vector<Region*>& regions = w.block->launch.regions;
    const uint32_t cached = w.block->region_cache[static_cast<size_t>(&in - w.block->program.code.data())];
    if (cached < regions.size() && regions[cached]->holds(a.at[0], total)) {
      note(*regions[cached], a.at[0], total, -1, access);
      count.units += (a.at[0] + total - 1) / 32 - a.at[0] / 32 + 1;
      count.least += (total + 31) / 32;
      return;
    }
  }
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    note(find_region(w, in, a.at[lane], bytes, lane), a.at[lane], bytes, lane, access);
  }
  count_sectors(count, a, lanes, bytes);
}

void count_wavefronts(Warp& w, const Instr& in, const uint32_t* addresses, uint32_t lanes, uint32_t bytes) {
  // 4-byte accesses go in one phase of 32 lanes, 8-byte ones in two of 16, 16-byte ones in four of 8. Within a phase
  // every bank (4 bytes wide, 32 of them) delivers one word per wavefront; lanes that ask for the same word share it.
  const uint32_t step = bytes <= 4 ? 1 : bytes / 4;  // words per lane
  const uint32_t width = kLanes / step;
  InstrCount& count = count_of(w, in);
  for (uint32_t first = 0; first < kLanes; first += width) {
    const uint32_t group = width == kLanes ? lanes : lanes >> first & ((1u << width) - 1);
    if (group == 0) continue;
    ++count.least;
    uint32_t used = 0, same = 0;  // lane-sized bank groups touched
    uint32_t word[32];            // the word that each bank group holds
    bool clash = false;
    for (uint32_t rest = group; rest != 0; rest &= rest - 1) {
      const uint32_t chunk = addresses[first + static_cast<uint32_t>(__builtin_ctz(rest))] / (4 * step);
      const uint32_t bank = chunk % width;
      if (used >> bank & 1) {
        clash |= word[bank] != chunk;
        ++same;
      }
      used |= 1u << bank;
      word[bank] = chunk;
    }
    if (!clash) {
      ++count.units;
      continue;
    }
    uint32_t distinct[32][32], depth[32] = {}, worst = 0;
    for (uint32_t rest = group; rest != 0; rest &= rest - 1) {
      const uint32_t chunk = addresses[first + static_cast<uint32_t>(__builtin_ctz(rest))] / (4 * step);
      const uint32_t bank = chunk % width;
      if (std::find(distinct[bank], distinct[bank] + depth[bank], chunk) == distinct[bank] + depth[bank]) {
        distinct[bank][depth[bank]++] = chunk;
        worst = std::max(worst, depth[bank]);
      }
    }
    count.units += worst;
  }
}

void touch_shared(Warp& w, const Instr& in, const Addresses& a, uint32_t lanes, uint32_t bytes, uint32_t alignment,
                  Access access) {
  SharedMemory& shared = w.block->shared;
  uint32_t at[kLanes];
  for (uint32_t i = 0; i < kLanes; ++i) at[i] = static_cast<uint32_t>(std::min<uint64_t>(a.at[i], 0xfffffff0u));
  const bool synchronises = access == Access::kAtomic || in.flags & kStrong;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    shared.check_bounds(at[lane], bytes, alignment, lane);
    if (synchronises) {
      shared.atomic(w.index, at[lane], bytes, lane, access == Access::kWrite);
    } else if (access == Access::kWrite) {
      shared.write(w.index, at[lane], bytes, lane);
    }
  }
  if (!synchronises && access == Access::kRead) {
    shared.read(w.index, at, lanes, bytes, in.cls == InstrClass::kLdmatrix);
  }
  count_wavefronts(w, in, at, lanes, bytes);
}

void resolve(Warp& w, const Instr& in, Space space, const Addresses& a, uint32_t lanes, uint32_t bytes,
             uint32_t alignment, Access access, Pointers& out) {
  Block& block = *w.block;
  switch (space) {
    case Space::kGlobal:
    case Space::kConst:
      touch_global(w, in, a, lanes, bytes, alignment, access);
      for (int i = 0; i < kLanes; ++i) out.at[i] = reinterpret_cast<uint8_t*>(a.at[i]);
      return;
    case Space::kShared:
      touch_shared(w, in, a, lanes, bytes, alignment, access);
      for (int i = 0; i < kLanes; ++i) out.at[i] = block.shared.data() + a.at[i];
      return;
    case Space::kLocal: {
      check_alignment(a, lanes, alignment, "local");
      const uint64_t frame = block.program.frame_bytes;
      for (uint32_t i = 0; i < kLanes; ++i) {
        if ((lanes >> i & 1) && (a.at[i] > frame || bytes > frame - a.at[i])) {
          throw Finding("local-out-of-bounds",
                        "local address " + std::to_string(a.at[i]) + " + " + std::to_string(bytes) +
                            " bytes lies outside the thread's " + std::to_string(frame) + " bytes",
                        static_cast<int>(i));
        }
        out.at[i] = w.local + i * frame + a.at[i];
      }
      return;
    }
    case Space::kParam:
      for (uint32_t i = 0; i < kLanes; ++i) {
        if ((lanes >> i & 1) &&
            (a.at[i] > block.launch.params.size() || bytes > block.launch.params.size() - a.at[i])) {
          throw Finding("param-out-of-bounds",
                        "parameter offset " + std::to_string(a.at[i]) + " lies outside the " +
                            std::to_string(block.launch.params.size()) + " bytes of parameters",
                        static_cast<int>(i));
        }
        out.at[i] = const_cast<uint8_t*>(block.launch.params.data()) + a.at[i];
      }
      return;
    default:
      break;
  }
  // Generic: the address says where it belongs; lanes may differ.
  uint32_t shared_lanes = 0, local_lanes = 0;
  Addresses moved = a;
  for (uint32_t i = 0; i < kLanes; ++i) {
    if (!(lanes >> i & 1)) continue;
    const uint64_t window = a.at[i] >> 56;
    if (window == kSharedWindow >> 56) shared_lanes |= 1u << i, moved.at[i] -= kSharedWindow;
    if (window == kLocalWindow >> 56) local_lanes |= 1u << i, moved.at[i] -= kLocalWindow;
  }
  const uint32_t global_lanes = lanes & ~shared_lanes & ~local_lanes;
  Pointers part;
  const auto merge = [&](Space s, uint32_t mask) {
    if (mask == 0) return;
    resolve(w, in, s, moved, mask, bytes, alignment, access, part);
    for (int i = 0; i < kLanes; ++i) {
      if (mask >> i & 1) out.at[i] = part.at[i];
    }
  };
  merge(Space::kGlobal, global_lanes);
  merge(Space::kShared, shared_lanes);
  merge(Space::kLocal, local_lanes);
}

}  // namespace showo::ptx
