// Shared memory of a block with a shadow that knows who wrote and read what, and in which barrier interval.
//
// Every warp has a clock that advances when it arrives at a barrier; a completed barrier makes what its participants
// did before it visible to those that waited (vector clocks). An access races with an earlier one by another warp
// that is not visible. A stamp is [in flight:1][clock:26][warp:5]; clocks never repeat within a launch, so that a
// stamp older than the block's first clock means "not written by this block" and nothing has to be cleared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace showo::ptx {

class SharedMemory {
 public:
  // Granules are 4 bytes, or 1 byte if the kernel touches smaller pieces.
  void configure(uint32_t bytes, uint32_t warps, bool narrow, bool atomics);
  void begin_block();

  uint8_t* data() { return data_.data(); }
  uint32_t size() const { return bytes_; }

  // The checks of one access by `warp`; they throw Finding. Bounds come first: check_bounds.
  void check_bounds(uint32_t address, uint32_t bytes, uint32_t alignment, int lane) const;
  void read(uint32_t warp, uint32_t address, uint32_t bytes, int lane) {
    const uint32_t n = granules(address, bytes);
    const uint32_t first = address >> shift_;
    bool clean;
    switch (n) {
      case 1:
        clean = mark_read<1>(warp, first);
        break;
      case 2:
        clean = mark_read<2>(warp, first);
        break;
      case 4:
        clean = mark_read<4>(warp, first);
        break;
      case 16:
        clean = mark_read<16>(warp, first);
        break;
      default:
        clean = mark_read(warp, first, n);
        break;
    }
    if (!clean || atomics_) judge_read(warp, first, n, lane);
  }
  void write(uint32_t warp, uint32_t address, uint32_t bytes, int lane) { stamp(warp, address, bytes, lane, 0); }
  void atomic(uint32_t warp, uint32_t address, uint32_t bytes, int lane, bool stores);
  // cp.async was issued, and has been waited for.
  void begin_async(uint32_t warp, uint32_t address, uint32_t bytes, int lane) {
    stamp(warp, address, bytes, lane, kInFlight);
  }
  void end_async(uint32_t warp, uint32_t address, uint32_t bytes);

  // Barriers: a participant publishes what it has seen and advances; one that waited acquires the sum.
  void publish(uint32_t warp, uint32_t* seen) const;
  void advance(uint32_t warp) { ++clock_[warp]; }
  void acquire(uint32_t warp, const uint32_t* seen);
  static constexpr uint32_t kLastClock = (1u << 26) - 1;

 private:
  static constexpr uint32_t kInFlight = 1u << 31;
  uint32_t bytes_ = 0, warps_ = 0, shift_ = 2, granules_ = 0;
  bool atomics_ = false;
  std::vector<uint8_t> data_;
  std::vector<uint32_t> write_stamp_;
  std::vector<uint32_t> last_read_;     // newest clock of any reader
  std::vector<uint32_t> read_clock_;    // [warp][granule]
  std::vector<uint32_t> atomic_clock_;  // [warp][granule]
  uint32_t first_clock_ = 1;            // of this block
  uint32_t clock_[32] = {};
  uint32_t seen_[32][32] = {};  // seen_[w][r]: newest clock of r that w may rely on
  uint32_t floor_[32] = {};     // least of seen_[w][r], r != w

  uint32_t granules(uint32_t address, uint32_t bytes) const {
    return ((address + bytes - 1) >> shift_) - (address >> shift_) + 1;
  }

  template <int kCount>
  bool mark_read(uint32_t warp, uint32_t first) {
    return mark(warp, first, kCount);
  }
  bool mark_read(uint32_t warp, uint32_t first, uint32_t count) { return mark(warp, first, count); }

  // Notes the read. False if the granules need a closer look; true means visible for sure.
  inline __attribute__((always_inline)) bool mark(uint32_t warp, uint32_t first, uint32_t count) {
    const uint32_t* stamps = &write_stamp_[first];
    uint32_t* own = &read_clock_[size_t{warp} * granules_ + first];
    uint32_t* last = &last_read_[first];
    const uint32_t now = clock_[warp], low = first_clock_, high = floor_[warp];
    uint32_t doubt = 0;
    for (uint32_t k = 0; k < count; ++k) {
      const uint32_t clock = stamps[k] >> 5;
      doubt |= static_cast<uint32_t>(clock < low) | (static_cast<uint32_t>(clock > high) & ((stamps[k] & 31) != warp)) |
               stamps[k] >> 31;
      own[k] = now;
      last[k] = last[k] > now ? last[k] : now;
    }
    return doubt == 0;
  }

  void judge_read(uint32_t warp, uint32_t first, uint32_t count, int lane) const;
  void judge_stamp(uint32_t warp, uint32_t granule, int lane, const char* access) const;
  void judge_others(const std::vector<uint32_t>& clocks, uint32_t warp, uint32_t first, uint32_t count, int lane,
                    const char* access, const char* earlier) const;
  void stamp(uint32_t warp, uint32_t address, uint32_t bytes, int lane, uint32_t flag);
  std::string place(uint32_t granule) const;
};

}  // namespace showo::ptx
