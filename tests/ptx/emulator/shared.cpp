#include "shared.h"

#include <algorithm>
#include <stdexcept>

#include "machine.h"

namespace showo::ptx {

void SharedMemory::configure(uint32_t bytes, uint32_t warps, bool narrow, bool atomics) {
  bytes_ = bytes;
  warps_ = warps;
  shift_ = narrow ? 0 : 2;
  granules_ = (bytes >> shift_) + 16;
  atomics_ = atomics;
  data_.assign(bytes + 64, 0);
  write_stamp_.assign(granules_, 0);
  last_read_.assign(granules_, 0);
  readers_.assign(size_t{warps} * granules_, 0);
  changers_.assign(atomics ? size_t{warps} * granules_ : 0, 0);
  std::fill(clock_, clock_ + 32, 0);
}

void SharedMemory::begin_block() {
  uint32_t next = 1 + *std::max_element(clock_, clock_ + 32);
  if (next > kLastClock / 2) {
    configure(bytes_, warps_, shift_ == 0, atomics_);
    next = 1;
  }
  first_clock_ = next;
  for (uint32_t w = 0; w < 32; ++w) {  // the first clock itself is visible to everyone: see atomic()
    clock_[w] = next + 1;
    floor_[w] = next;
    std::fill(seen_[w], seen_[w] + 32, next);
  }
  if (warps_ == 1) floor_[0] = kLastClock;
}

std::string SharedMemory::place(uint32_t granule) const {
  return "shared address " + std::to_string(granule << shift_);
}

void SharedMemory::check_bounds(uint32_t address, uint32_t bytes, uint32_t alignment, int lane) const {
  if (address % alignment != 0) {
    throw Finding("misaligned",
                  "shared address " + std::to_string(address) + " is not a multiple of " + std::to_string(alignment),
                  lane);
  }
  if (address < kSharedReserved || address > bytes_ || bytes > bytes_ - address) {
    throw Finding("shared-out-of-bounds",
                  "shared address " + std::to_string(address) + " + " + std::to_string(bytes) +
                      " bytes lies outside the block's " + std::to_string(bytes_ - kSharedReserved) +
                      " bytes (addresses " + std::to_string(kSharedReserved) + " to " + std::to_string(bytes_) + ")",
                  lane);
  }
}

void SharedMemory::judge_stamp(uint32_t warp, uint32_t granule, int lane, const char* access, bool collective) const {
  const uint32_t stamp = write_stamp_[granule];
  const uint32_t writer = warp_of(stamp), clock = clock_of(stamp), writing_lane = stamp & 31;
  if (clock < first_clock_) return;
  if (stamp & kInFlight) {
    throw Finding("async-in-flight",
                  std::string(access) + " " + place(granule) + " while a cp.async of warp " + std::to_string(writer) +
                      " to it has not been waited for",
                  lane);
  }
  if (writer != warp && clock > seen_[warp][writer]) {
    throw Finding("race",
                  std::string(access) + " " + place(granule) + ", which warp " + std::to_string(writer) +
                      " wrote with no barrier in between",
                  lane);
  }
  if (writer == warp && clock == clock_[warp] && (collective || writing_lane != static_cast<uint32_t>(lane))) {
    throw Finding("lane-race",
                  std::string(access) + " " + place(granule) + ", which lane " + std::to_string(writing_lane) +
                      " of the same warp wrote with no __syncwarp in between",
                  lane);
  }
}

void SharedMemory::judge_accesses(const std::vector<uint32_t>& accesses, uint32_t warp, uint32_t first, uint32_t count,
                                  int lane, const char* access, const char* earlier, bool collective) const {
  for (uint32_t other = 0; other < warps_; ++other) {
    const uint32_t* theirs = &accesses[size_t{other} * granules_ + first];
    for (uint32_t k = 0; k < count; ++k) {
      const uint32_t clock = theirs[k] >> 6;
      if (other != warp && clock >= first_clock_ && clock > seen_[warp][other]) {
        throw Finding("race",
                      std::string(access) + " " + place(first + k) + ", which warp " + std::to_string(other) + " " +
                          earlier + " with no barrier in between",
                      lane);
      }
      const uint32_t lanes = theirs[k] & 63;
      if (other == warp && clock == clock_[warp] && (collective || lanes != static_cast<uint32_t>(lane))) {
        throw Finding("lane-race",
                      std::string(access) + " " + place(first + k) + ", which " +
                          (lanes < kSeveralLanes ? "lane " + std::to_string(lanes) : "another lane") +
                          " of the same warp " + earlier + " with no __syncwarp in between",
                      lane);
      }
    }
  }
}

void SharedMemory::judge_read(uint32_t warp, uint32_t first, uint32_t count, int lane, bool collective) const {
  for (uint32_t k = first; k < first + count; ++k) {
    if (clock_of(write_stamp_[k]) < first_clock_) {
      throw Finding("uninitialised-shared", "reads " + place(k) + ", which this block has never written", lane);
    }
    judge_stamp(warp, k, lane, "reads", collective);
  }
  if (atomics_) judge_accesses(changers_, warp, first, count, lane, "reads", "changed atomically", collective);
}

void SharedMemory::stamp(uint32_t warp, uint32_t address, uint32_t bytes, int lane, uint32_t flag) {
  const uint32_t first = address >> shift_;
  const uint32_t count = granules(address, bytes);
  const uint32_t high = floor_[warp];
  const uint32_t mine = stamp_of(clock_[warp], warp, lane), mine_as_reader = access_of(clock_[warp], lane, false);
  const uint32_t* own = &readers_[size_t{warp} * granules_];
  uint32_t doubt = 0;
  for (uint32_t k = first; k < first + count; ++k) {
    doubt |= static_cast<uint32_t>(write_stamp_[k] >> 10 > high) | static_cast<uint32_t>(last_read_[k] > high) |
             static_cast<uint32_t>(differ_in(write_stamp_[k], mine, 31)) |
             static_cast<uint32_t>(differ_in(own[k], mine_as_reader, 63));
  }
  if (doubt || atomics_) {
    const char* access = flag ? "starts a cp.async to" : "writes";
    for (uint32_t k = first; k < first + count; ++k) judge_stamp(warp, k, lane, access);
    judge_accesses(readers_, warp, first, count, lane, access, "read");
    if (atomics_) judge_accesses(changers_, warp, first, count, lane, access, "changed atomically");
  }
  for (uint32_t k = first; k < first + count; ++k) write_stamp_[k] = flag | mine;
}

void SharedMemory::end_async(uint32_t warp, uint32_t address, uint32_t bytes, int lane) {
  const uint32_t first = address >> shift_;
  const uint32_t mark = stamp_of(clock_[warp], warp, lane);
  for (uint32_t k = first; k < first + granules(address, bytes); ++k) write_stamp_[k] = mark;
}

void SharedMemory::atomic(uint32_t warp, uint32_t address, uint32_t bytes, int lane, bool stores) {
  const uint32_t first = address >> shift_;
  const uint32_t count = granules(address, bytes);
  for (uint32_t k = first; k < first + count; ++k) {
    const bool written = clock_of(write_stamp_[k]) >= first_clock_;
    if (!stores && !written) {
      throw Finding("uninitialised-shared", "reads " + place(k) + ", which this block has never written", lane);
    }
    judge_stamp(warp, k, lane, "atomically accesses");
    if (stores && !written) write_stamp_[k] = stamp_of(first_clock_, warp, lane);
    uint32_t& changer = changers_[size_t{warp} * granules_ + k];
    changer = joined(changer, access_of(clock_[warp], lane, false));
  }
  judge_accesses(readers_, warp, first, count, lane, "atomically accesses", "read");
}

void SharedMemory::advance(uint32_t warp) {
  if (++clock_[warp] > kLastClock) throw std::runtime_error("a block executes more than a million barriers");
}

void SharedMemory::publish(uint32_t warp, uint32_t* seen) const {
  for (uint32_t r = 0; r < warps_; ++r) seen[r] = std::max(seen[r], r == warp ? clock_[r] : seen_[warp][r]);
}

void SharedMemory::acquire(uint32_t warp, const uint32_t* seen) {
  uint32_t least = kLastClock;
  for (uint32_t r = 0; r < warps_; ++r) {
    if (r == warp) continue;
    seen_[warp][r] = std::max(seen_[warp][r], seen[r]);
    least = std::min(least, seen_[warp][r]);
  }
  floor_[warp] = least;
}

}  // namespace showo::ptx
