// Sums of the counters and their report as JSON.
#include "counters.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "module.h"

namespace showo::ptx {
namespace {

std::mutex g_mutex;
std::vector<std::string> g_records;

// The most that any launch of a kernel has asked for.
struct Asked {
  uint64_t threads, static_shared, dynamic_shared, registers;
};
std::map<std::string, Asked> g_launched;

std::string quote(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') {
      out += '\\', out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string field(const char* name, uint64_t value) {
  return std::string(", \"") + name + "\": " + std::to_string(value);
}
std::string list(uint64_t a, uint64_t b) { return "[" + std::to_string(a) + ", " + std::to_string(b) + "]"; }
std::string list(const Dim3& d) {
  return "[" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + "]";
}

bool counts_wavefronts(const Instr& in) { return in.cls == InstrClass::kShared || in.cls == InstrClass::kLdmatrix; }
bool counts_sectors(const Instr& in) { return in.cls == InstrClass::kGlobal || in.cls == InstrClass::kAsyncCopy; }

std::string lines_of(const Program& p, const Counters& counters) {
  std::string text = "[";
  for (size_t i = 0; i < p.code.size(); ++i) {
    const InstrCount& c = counters.by_instr[i];
    const Instr& in = p.code[i];
    if (c.warps == 0 || in.synthetic) continue;
    const std::string ptx =
        p.text && static_cast<size_t>(in.line) <= p.text->size() && in.line > 0 ? (*p.text)[in.line - 1] : "";
    text += (text.size() > 1 ? ",\n" : "") + std::string("{\"line\": ") + std::to_string(in.line) +
            ", \"class\": " + quote(class_name(in.cls)) + field("warps", c.warps) + field("threads", c.threads) +
            field("units", c.units) + field("least", c.least) + ", \"source\": " + quote(p.source_name(in.source)) +
            ", \"text\": " + quote(ptx) + "}";
  }
  return text + "]";
}

}  // namespace

void Counters::add(const Counters& other) {
  for (size_t i = 0; i < by_instr.size(); ++i) {
    by_instr[i].warps += other.by_instr[i].warps;
    by_instr[i].threads += other.by_instr[i].threads;
    by_instr[i].units += other.by_instr[i].units;
    by_instr[i].least += other.by_instr[i].least;
  }
  mma_flops += other.mma_flops;
}

void record_launch(const Launch& launch, int registers, const Counters& counters,
                   const std::vector<RegionTraffic>& traffic) {
  const Program& p = *launch.program;
  uint64_t warps[static_cast<int>(InstrClass::kCount)] = {}, threads[static_cast<int>(InstrClass::kCount)] = {};
  uint64_t wavefronts[2] = {}, sectors[2] = {}, divergent = 0, all_warps = 0, all_threads = 0;
  for (size_t i = 0; i < p.code.size(); ++i) {
    const Instr& in = p.code[i];
    const InstrCount& c = counters.by_instr[i];
    if (in.synthetic) continue;
    warps[static_cast<int>(in.cls)] += c.warps;
    threads[static_cast<int>(in.cls)] += c.threads;
    all_warps += c.warps;
    all_threads += c.threads;
    if (counts_wavefronts(in)) wavefronts[0] += c.units, wavefronts[1] += c.least;
    if (counts_sectors(in)) sectors[0] += c.units, sectors[1] += c.least;
    if (in.cls == InstrClass::kBranch) divergent += c.units;
  }
  std::string json =
      "{\"kernel\": " + quote(p.name) + ", \"grid\": " + list(launch.grid) + ", \"block\": " + list(launch.block) +
      field("static_shared", p.static_shared) + field("dynamic_shared", launch.dynamic_shared) +
      field("registers", static_cast<uint64_t>(registers)) +
      field("live_registers", static_cast<uint64_t>(p.live_registers)) + field("warp_instructions", all_warps) +
      field("thread_instructions", all_threads) + field("mma_flops", counters.mma_flops) +
      field("divergent_branches", divergent) + ", \"shared_wavefronts\": " + list(wavefronts[0], wavefronts[1]) +
      ", \"global_sectors\": " + list(sectors[0], sectors[1]) + ", \"classes\": {";
  bool first = true;
  for (int i = 0; i < static_cast<int>(InstrClass::kCount); ++i) {
    if (warps[i] == 0) continue;
    json += (first ? "" : ", ") + quote(class_name(static_cast<InstrClass>(i))) + ": " + list(warps[i], threads[i]);
    first = false;
  }
  json += "}, \"tensors\": [";
  for (size_t i = 0; i < traffic.size(); ++i) {
    const RegionTraffic& t = traffic[i];
    json += (i ? ", " : "") + std::string("{\"name\": ") + quote(t.name) + field("bytes", t.bytes) +
            field("read", t.read) + field("written", t.written) + field("never_written", t.never_written) + "}";
  }
  json += "]";
  if (options().lines) json += ", \"lines\": " + lines_of(p, counters);
  json += "}";
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_records.push_back(std::move(json));
  if (g_records.size() > 10000) g_records.erase(g_records.begin(), g_records.begin() + 5000);
  Asked& asked = g_launched[p.name];
  asked = {std::max<uint64_t>(asked.threads, uint64_t{launch.block.x} * launch.block.y * launch.block.z),
           p.static_shared, std::max<uint64_t>(asked.dynamic_shared, launch.dynamic_shared),
           static_cast<uint64_t>(registers)};
}

std::string take_records() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  std::string all = "[";
  for (const std::string& r : g_records) all += (all.size() > 1 ? ",\n" : "") + r;
  g_records.clear();
  return all + "]";
}

void forget_launches() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_launched.clear();
}

std::string launched_kernels() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  std::string all = "[";
  for (const auto& [name, asked] : g_launched) {
    all += (all.size() > 1 ? ",\n" : "") + std::string("{\"kernel\": ") + quote(name) +
           field("threads", asked.threads) + field("static_shared", asked.static_shared) +
           field("dynamic_shared", asked.dynamic_shared) + field("registers", asked.registers) + "}";
  }
  return all + "]";
}

}  // namespace showo::ptx
