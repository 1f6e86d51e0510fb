#include "names.h"

#include <set>
#include <sstream>
#include <unordered_map>
#include <vector>

namespace showo::ptx {
namespace {

std::vector<std::string> split_dots(const std::string& opcode) {
  std::vector<std::string> parts;
  std::stringstream stream(opcode);
  for (std::string part; std::getline(stream, part, '.');) parts.push_back(part);
  return parts;
}

}  // namespace

const SpecialRegister* special_register(const std::string& name) {
  using S = SpecialRegister;
  static const std::unordered_map<std::string, S> kNames = {{"%tid.x", S::kTidX},
                                                            {"%tid.y", S::kTidY},
                                                            {"%tid.z", S::kTidZ},
                                                            {"%ntid.x", S::kNtidX},
                                                            {"%ntid.y", S::kNtidY},
                                                            {"%ntid.z", S::kNtidZ},
                                                            {"%ctaid.x", S::kCtaidX},
                                                            {"%ctaid.y", S::kCtaidY},
                                                            {"%ctaid.z", S::kCtaidZ},
                                                            {"%nctaid.x", S::kNctaidX},
                                                            {"%nctaid.y", S::kNctaidY},
                                                            {"%nctaid.z", S::kNctaidZ},
                                                            {"%laneid", S::kLaneId},
                                                            {"%warpid", S::kWarpId},
                                                            {"%nwarpid", S::kNwarpId},
                                                            {"%smid", S::kSmId},
                                                            {"%nsmid", S::kNsmId},
                                                            {"%lanemask_eq", S::kLanemaskEq},
                                                            {"%lanemask_le", S::kLanemaskLe},
                                                            {"%lanemask_lt", S::kLanemaskLt},
                                                            {"%lanemask_ge", S::kLanemaskGe},
                                                            {"%lanemask_gt", S::kLanemaskGt},
                                                            {"%dynamic_smem_size", S::kDynamicSmem},
                                                            {"%total_smem_size", S::kTotalSmem},
                                                            {"%clock", S::kClock},
                                                            {"%clock64", S::kClock64},
                                                            {"%globaltimer", S::kGlobaltimer},
                                                            {"%gridid", S::kGridId}};
  const auto found = kNames.find(name);
  return found == kNames.end() ? nullptr : &found->second;
}

std::string canonical_opcode(const std::string& opcode, uint16_t& flags) {
  static const std::set<std::string> kStrongWords = {"volatile", "relaxed", "acquire", "release", "acq_rel"};
  static const std::set<std::string> kMemoryWords = {"weak", "cta", "gpu", "sys", "cluster", "ca", "cg",
                                                     "cs",   "lu",  "cv",  "wb",  "wt",      "nc", "noftz"};
  static const std::set<std::string> kMemoryOps = {"ld", "st", "atom", "red", "cp", "ldu", "prefetch", "ldmatrix"};
  const std::vector<std::string> parts = split_dots(opcode);
  const bool memory = kMemoryOps.count(parts[0]) != 0;
  std::string name;
  for (std::string part : parts) {
    if (part == "aligned" || part == "uni") continue;
    if (part.compare(0, 4, "L1::") == 0 || part.compare(0, 4, "L2::") == 0) continue;
    if (memory && kStrongWords.count(part)) {
      flags |= kStrong;
      continue;
    }
    if (memory && kMemoryWords.count(part)) continue;
    if (part == "shared::cta") part = "shared";
    if (part == "ldu") part = "ld";
    name += name.empty() ? part : "." + part;
  }
  return name;
}

}  // namespace showo::ptx
