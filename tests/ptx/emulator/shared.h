// Shared memory of a block with a shadow that knows who wrote and read what, and in which barrier interval.
//
// Every warp has a clock that advances when the warp arrives at a barrier or executes __syncwarp. A completed barrier
// makes what its participants did before it visible to those that waited (vector clocks). An access races with an
// earlier one by another warp that is not visible, and with an earlier one by another lane of its own warp at the same
// clock. A stamp is [in flight:1][clock:21][warp:5][lane:5]; clocks do not repeat while stamps are kept, so that a
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
  // Each of `lanes` reads `bytes` at its own of 32 addresses. `collective`: every lane of the warp gets some of these
  // bytes (ldmatrix), not only the one that names the address.
  void read(uint32_t warp, const uint32_t* addresses, uint32_t lanes, uint32_t bytes, bool collective) {
    switch (bytes >> shift_) {
      case 1:
        return read_granules(warp, addresses, lanes, 1, collective);
      case 2:
        return read_granules(warp, addresses, lanes, 2, collective);
      case 4:
        return read_granules(warp, addresses, lanes, 4, collective);
      case 16:
        return read_granules(warp, addresses, lanes, 16, collective);
      default:
        return read_granules(warp, addresses, lanes, bytes >> shift_, collective);
    }
  }
  void write(uint32_t warp, uint32_t address, uint32_t bytes, int lane) { stamp(warp, address, bytes, lane, 0); }
  void atomic(uint32_t warp, uint32_t address, uint32_t bytes, int lane, bool stores);
  // cp.async was issued, and has been waited for.
  void begin_async(uint32_t warp, uint32_t address, uint32_t bytes, int lane) {
    stamp(warp, address, bytes, lane, kInFlight);
  }
  void end_async(uint32_t warp, uint32_t address, uint32_t bytes, int lane);

  // Barriers: a participant publishes what it has seen and advances; one that waited acquires the sum. __syncwarp
  // advances only.
  void publish(uint32_t warp, uint32_t* seen) const;
  void advance(uint32_t warp);
  void acquire(uint32_t warp, const uint32_t* seen);
  static constexpr uint32_t kLastClock = (1u << 21) - 1;

 private:
  static constexpr uint32_t kInFlight = 1u << 31;
  uint32_t bytes_ = 0, warps_ = 0, shift_ = 2, granules_ = 0;
  bool atomics_ = false;
  std::vector<uint8_t> data_;
  std::vector<uint32_t> write_stamp_;
  std::vector<uint32_t> last_read_;  // newest clock of any reader
  // Who of a warp accessed a granule last, [warp][granule] of [clock:26][several lanes:1][lane:5].
  std::vector<uint32_t> readers_;
  std::vector<uint32_t> changers_;  // by atomic and volatile accesses
  uint32_t first_clock_ = 1;        // of this block
  uint32_t clock_[32] = {};
  uint32_t seen_[32][32] = {};  // seen_[w][r]: newest clock of r that w may rely on
  uint32_t floor_[32] = {};     // least of seen_[w][r], r != w

  uint32_t granules(uint32_t address, uint32_t bytes) const {
    return ((address + bytes - 1) >> shift_) - (address >> shift_) + 1;
  }

  static constexpr uint32_t kSeveralLanes = 32;
  static uint32_t stamp_of(uint32_t clock, uint32_t warp, int lane) {
    return clock << 10 | warp << 5 | static_cast<uint32_t>(lane);
  }
  static uint32_t clock_of(uint32_t stamp) { return (stamp & ~kInFlight) >> 10; }
  static uint32_t warp_of(uint32_t stamp) { return stamp >> 5 & 31; }
  static uint32_t access_of(uint32_t clock, int lane, bool collective) {
    return clock << 6 | (collective ? kSeveralLanes : 0) | static_cast<uint32_t>(lane);
  }
  // The last access and a new one of the same warp, of which the latter remains.
  static uint32_t joined(uint32_t last, uint32_t access) {
    return access | (differ_in(last, access, 63) ? kSeveralLanes : 0);
  }
  // Whether the numbers differ, and only in the low bits, whose mask is given.
  static bool differ_in(uint32_t a, uint32_t b, uint32_t low_bits) { return (a ^ b) - 1 < low_bits; }

  // Notes the reads, and judges those that are not visible for sure.
  inline __attribute__((always_inline)) void read_granules(uint32_t warp, const uint32_t* addresses, uint32_t lanes,
                                                           uint32_t count, bool collective) {
    const uint32_t now = clock_[warp], low = first_clock_, high = floor_[warp];
    const uint32_t others = collective ? 0 : 1;  // a collective read is not ordered by being the writing lane's either
    uint32_t* readers = readers_.data() + size_t{warp} * granules_;
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      const uint32_t first = addresses[lane] >> shift_;
      const uint32_t mine = stamp_of(now, warp, lane), access = access_of(now, lane, collective);
      const uint32_t* __restrict stamps = write_stamp_.data() + first;
      uint32_t* __restrict own = readers + first;
      uint32_t* __restrict last = last_read_.data() + first;
      uint32_t doubt = 0;
      for (uint32_t k = 0; k < count; ++k) {
        const uint32_t clock = stamps[k] >> 10;
        doubt |= static_cast<uint32_t>(clock < low) |
                 (static_cast<uint32_t>(clock > high) & static_cast<uint32_t>(warp_of(stamps[k]) != warp)) |
                 static_cast<uint32_t>((stamps[k] ^ mine) - others < 32 - others) | stamps[k] >> 31;
        own[k] = joined(own[k], access);
        last[k] = last[k] > now ? last[k] : now;
      }
      if (doubt || atomics_) judge_read(warp, first, count, lane, collective);
    }
  }

  void judge_read(uint32_t warp, uint32_t first, uint32_t count, int lane, bool collective) const;
  void judge_stamp(uint32_t warp, uint32_t granule, int lane, const char* access, bool collective = false) const;
  void judge_accesses(const std::vector<uint32_t>& accesses, uint32_t warp, uint32_t first, uint32_t count, int lane,
                      const char* access, const char* earlier, bool collective = false) const;
  void stamp(uint32_t warp, uint32_t address, uint32_t bytes, int lane, uint32_t flag);
  std::string place(uint32_t granule) const;
};

}  // namespace showo::ptx
