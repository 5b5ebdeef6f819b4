#include "npy.h"

namespace resnext {

NpyWriter::NpyWriter(const std::string& path, const char* type, size_t rows, const std::vector<size_t>& shape)
    : file_(path) {
  std::string header =
      std::string("{'descr': '") + type + "', 'fortran_order': False, 'shape': (" + std::to_string(rows);
  for (const size_t side : shape) header += ", " + std::to_string(side);
  header += shape.empty() ? ",), }" : "), }";
  constexpr size_t kPrefix = 10, kAlign = 64;
  header.append(kAlign - (kPrefix + header.size() + 1) % kAlign, ' ');
  header += '\n';
  const char prefix[kPrefix] = {'\x93',
                                'N',
                                'U',
                                'M',
                                'P',
                                'Y',
                                1,
                                0,
                                static_cast<char>(header.size() & 0xFF),
                                static_cast<char>(header.size() >> 8)};
  write(prefix, kPrefix);
  write(header.data(), header.size());
}

void NpyWriter::write(const void* data, size_t bytes) { file_.write(data, bytes); }

void NpyWriter::finish() { file_.finish(); }

}  // namespace resnext
