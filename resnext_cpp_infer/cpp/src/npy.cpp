#include "npy.h"

#include "files.h"

namespace resnext {

NpyWriter::NpyWriter(const std::string& path, const char* type, size_t rows, const std::vector<size_t>& shape)
    : path_(path), file_(open_partial(path)) {
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

NpyWriter::~NpyWriter() {
  if (file_ != nullptr) std::fclose(file_);
}

void NpyWriter::write(const void* data, size_t bytes) { write_all(file_, path_, data, bytes); }

void NpyWriter::finish() {
  std::FILE* file = file_;
  file_ = nullptr;
  finish_partial(file, path_);
}

}  // namespace resnext
