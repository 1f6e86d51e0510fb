// Device-visible host memory: registered tensors, cudaMalloc allocations and module variables, byte by byte.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace showo::ptx {

enum : uint8_t { kNeverWritten = 0, kWrittenBefore = 1, kWrittenNow = 2 };

struct Region {
  std::string name;
  uint64_t base = 0;
  uint64_t bytes = 0;
  uint64_t first_piece = 0;  // base of the region that a launch names; another one's where a tensor is in pieces
  bool read_only = false;
  bool module_variable = false;  // part of every launch, unlike tensors
  std::vector<uint8_t> written;  // kNeverWritten, kWrittenBefore, kWrittenNow (by the launch in flight)
  std::vector<uint8_t> read;     // 1: read by the launch in flight
  bool holds(uint64_t address, uint64_t size) const {
    return address >= base && size <= bytes && address - base <= bytes - size;
  }
};

struct RegionTraffic {
  std::string name;
  uint64_t bytes, read, written, never_written;
};

// All functions are thread-safe; launches hold the lock only while they collect their regions.
class RegionTable {
 public:
  static RegionTable& instance();
  // Replaces regions that overlap. `initialised` says whether the bytes have a value already.
  void add(const std::string& name, uint64_t base, uint64_t bytes, bool initialised, bool read_only,
           bool module_variable = false);
  // One more piece of the tensor whose first piece lies at `first`: of a tensor with huge strides, only the bytes that
  // hold elements are known, and an access between them is out of bounds.
  void add_piece(uint64_t first, uint64_t base, uint64_t bytes);
  void remove(uint64_t base);  // with all its pieces
  void clear_tensors();
  void mark_written(uint64_t base, uint64_t bytes);  // by the host (memset, memcpy)
  bool contains(uint64_t address, uint64_t bytes);
  // Tensors that some 8-byte word of the parameters points into, all pieces of them, and all module variables.
  std::vector<Region*> of_call(const std::vector<uint8_t>& params);
  std::string describe(uint64_t address, uint64_t bytes);  // "4 bytes past the end of 'out' (64 bytes)"

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Region>> regions_;  // sorted by base
};

void begin_launch(const std::vector<Region*>& regions);
std::vector<RegionTraffic> end_launch(const std::vector<Region*>& regions);

}  // namespace showo::ptx
