#include "fatbin.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace showo::ptx {
namespace {

constexpr uint32_t kMagic = 0xba55ed50u;
constexpr uint32_t kArchitecture = 80;

template <class T>
T read_at(const uint8_t* p, size_t offset) {
  T value;
  std::memcpy(&value, p + offset, sizeof value);
  return value;
}

// nvcc compresses PTX with zstd by default. The library is looked for only when it is needed.
std::string decompress(const uint8_t* data, size_t bytes, size_t expected, uint64_t flags) {
  constexpr uint64_t kZstd = 0x8000;
  if ((flags & kZstd) == 0)
    throw std::runtime_error("device code is compressed in an unknown way; build with --compress-mode=none");
  void* library = dlopen("libzstd.so.1", RTLD_NOW);
  if (library == nullptr)
    throw std::runtime_error("device code is compressed and libzstd.so.1 is missing; build with --compress-mode=none");
  using Decompress = size_t (*)(void*, size_t, const void*, size_t);
  const auto run = reinterpret_cast<Decompress>(dlsym(library, "ZSTD_decompress"));
  std::string text(expected, '\0');
  const size_t got = run == nullptr ? 0 : run(text.data(), text.size(), data, bytes);
  dlclose(library);
  if (got != expected) throw std::runtime_error("device code could not be decompressed");
  return text;
}

// A cubin is an ELF file; the high byte of sh_info of section ".text.<kernel>" is its register count.
void read_registers(const uint8_t* elf, size_t bytes, std::map<std::string, int>& registers) {
  if (bytes < 64 || std::memcmp(elf, "\177ELF", 4) != 0) return;
  const auto table = read_at<uint64_t>(elf, 40);
  const auto count = read_at<uint16_t>(elf, 60), names = read_at<uint16_t>(elf, 62);
  if (table + uint64_t{count} * 64 > bytes || names >= count) return;
  const auto strings = read_at<uint64_t>(elf + table + names * 64, 24);
  for (uint32_t i = 0; i < count; ++i) {
    const uint8_t* section = elf + table + i * 64;
    const char* name = reinterpret_cast<const char*>(elf + strings + read_at<uint32_t>(section, 0));
    if (std::strncmp(name, ".text.", 6) == 0)
      registers[name + 6] = static_cast<int>(read_at<uint32_t>(section, 44) >> 24);
  }
}

}  // namespace

bool is_fatbinary(const void* image, size_t bytes) {
  return bytes >= 16 && read_at<uint32_t>(static_cast<const uint8_t*>(image), 0) == kMagic;
}

FatBinary read_fatbinary(const void* image, size_t limit) {
  const auto* data = static_cast<const uint8_t*>(image);
  if (!is_fatbinary(image, limit)) throw std::runtime_error("not a fat binary");
  FatBinary result;
  uint32_t best = 0;
  size_t offset = read_at<uint16_t>(data, 6);
  const size_t end = offset + read_at<uint64_t>(data, 8);
  while (offset + 64 <= end) {
    const uint8_t* entry = data + offset;
    const auto kind = read_at<uint16_t>(entry, 0);
    const auto header = read_at<uint32_t>(entry, 4);
    const auto size = read_at<uint64_t>(entry, 8);
    const auto compressed = read_at<uint32_t>(entry, 16);
    const auto arch = read_at<uint32_t>(entry, 28);
    const auto flags = read_at<uint64_t>(entry, 40);
    const auto expanded = read_at<uint64_t>(entry, 56);
    const uint8_t* payload = entry + header;
    const auto content = [&] {
      return compressed != 0 ? decompress(payload, compressed, expanded, flags)
                             : std::string(reinterpret_cast<const char*>(payload), size);
    };
    if (kind == 1 && arch <= kArchitecture && arch > best) {
      result.ptx = content();
      result.ptx.resize(std::strlen(result.ptx.c_str()));
      best = arch;
    } else if (kind == 2 && arch == kArchitecture) {
      const std::string elf = content();
      read_registers(reinterpret_cast<const uint8_t*>(elf.data()), elf.size(), result.registers);
    }
    offset += header + size;
  }
  if (best == 0)
    throw std::runtime_error("the fat binary has no PTX for compute_80 or older; build with code=compute_80");
  return result;
}

}  // namespace showo::ptx
