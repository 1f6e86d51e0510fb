#include "regions.h"

#include <algorithm>
#include <cstring>

namespace showo::ptx {

RegionTable& RegionTable::instance() {
  static RegionTable table;
  return table;
}

void RegionTable::add(const std::string& name, uint64_t base, uint64_t bytes, bool initialised, bool read_only,
                      bool module_variable) {
  const std::lock_guard<std::mutex> lock(mutex_);
  regions_.erase(std::remove_if(regions_.begin(), regions_.end(),
                                [&](const auto& r) { return r->base < base + bytes && base < r->base + r->bytes; }),
                 regions_.end());
  auto region = std::make_unique<Region>();
  region->name = name;
  region->base = base;
  region->bytes = bytes;
  region->first_piece = base;
  region->read_only = read_only;
  region->module_variable = module_variable;
  region->written.assign(bytes + 16, initialised ? kWrittenBefore : kNeverWritten);
  region->read.assign(bytes + 16, 0);
  const auto place =
      std::lower_bound(regions_.begin(), regions_.end(), base, [](const auto& r, uint64_t b) { return r->base < b; });
  regions_.insert(place, std::move(region));
}

void RegionTable::add_piece(uint64_t first, uint64_t base, uint64_t bytes) {
  add("piece of a tensor with gaps", base, bytes, true, false);
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& r : regions_) {
    if (r->base == base) r->first_piece = first;
  }
}

void RegionTable::remove(uint64_t base) {
  const std::lock_guard<std::mutex> lock(mutex_);
  regions_.erase(
      std::remove_if(regions_.begin(), regions_.end(), [&](const auto& r) { return r->first_piece == base; }),
      regions_.end());
}

void RegionTable::clear_tensors() {
  const std::lock_guard<std::mutex> lock(mutex_);
  regions_.erase(std::remove_if(regions_.begin(), regions_.end(), [](const auto& r) { return !r->module_variable; }),
                 regions_.end());
}

void RegionTable::mark_written(uint64_t base, uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& r : regions_) {
    const uint64_t from = std::max(base, r->base), to = std::min(base + bytes, r->base + r->bytes);
    if (from < to) std::memset(&r->written[from - r->base], kWrittenBefore, to - from);
  }
}

bool RegionTable::contains(uint64_t address, uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::any_of(regions_.begin(), regions_.end(), [&](const auto& r) { return r->holds(address, bytes); });
}

std::vector<Region*> RegionTable::of_call(const std::vector<uint8_t>& params) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<uint64_t> words(params.size() / 8);
  if (!words.empty()) std::memcpy(words.data(), params.data(), words.size() * 8);
  std::vector<uint64_t> named;
  for (const auto& r : regions_) {
    const bool pointed_into = std::any_of(words.begin(), words.end(), [&](uint64_t v) {
      return v >= r->base && v < r->base + std::max<uint64_t>(r->bytes, 1);
    });
    if (pointed_into) named.push_back(r->first_piece);
  }
  std::vector<Region*> used;
  for (const auto& r : regions_) {
    const bool wanted = std::find(named.begin(), named.end(), r->first_piece) != named.end();
    if (wanted || r->module_variable) used.push_back(r.get());
  }
  return used;
}

std::string RegionTable::describe(uint64_t address, uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Region* nearest = nullptr;
  uint64_t distance = ~0ull;
  for (const auto& r : regions_) {
    const uint64_t away = address < r->base               ? r->base - address
                          : address >= r->base + r->bytes ? address - (r->base + r->bytes)
                                                          : 0;
    if (away < distance) distance = away, nearest = r.get();
  }
  if (nearest == nullptr || distance > (1u << 20)) return "is in no registered tensor";
  const std::string name = "'" + nearest->name + "' (" + std::to_string(nearest->bytes) + " bytes)";
  if (address < nearest->base) return "starts " + std::to_string(distance) + " bytes before " + name;
  if (address >= nearest->base + nearest->bytes)
    return "starts " + std::to_string(distance) + " bytes past the end of " + name;
  if (!nearest->holds(address, bytes)) return "crosses the end of " + name;
  return "is in " + name + ", which is not an argument of this launch";
}

void begin_launch(const std::vector<Region*>& regions) {
  for (Region* r : regions) {
    std::fill(r->read.begin(), r->read.end(), 0);
    for (uint8_t& w : r->written) w = w ? kWrittenBefore : kNeverWritten;
  }
}

std::vector<RegionTraffic> end_launch(const std::vector<Region*>& regions) {
  std::vector<RegionTraffic> traffic;
  for (const Region* r : regions) {
    RegionTraffic t{r->name, r->bytes, 0, 0, 0};
    for (uint64_t i = 0; i < r->bytes; ++i) {
      t.read += r->read[i];
      t.written += r->written[i] == kWrittenNow;
      t.never_written += r->written[i] == kNeverWritten;
    }
    if (!r->module_variable || t.read || t.written) traffic.push_back(t);
  }
  return traffic;
}

}  // namespace showo::ptx
