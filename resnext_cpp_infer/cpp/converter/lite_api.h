// The converter of MindSpore Lite 2.0 as its library has it. The wheel on PyPI carries the library, but not the header:
// the declarations here are those of include/converter.h of that release, as far as they are used.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "include/api/status.h"
#include "include/api/types.h"

namespace mindspore {

struct ConverterPara;

namespace converter {
enum FmkType : int { kFmkTypeOnnx = 2 };
}  // namespace converter

// Text is std::vector<char>, which is the same under both of libstdc++'s ABIs.
class Converter {
 public:
  Converter(converter::FmkType format, const std::vector<char>& model, const std::vector<char>& output,
            const std::vector<char>& weights);
  ~Converter() = default;

  void SetSaveType(ModelType type);
  void SetNoFusion(bool no_fusion);
  void SetDevice(const std::vector<char>& device);
  void SetConfigFile(const std::vector<char>& path);
  void SetInputShape(const std::map<std::vector<char>, std::vector<int64_t>>& shapes);
  Status Convert();

 private:
  std::shared_ptr<ConverterPara> data_;  // the only member: its size is part of the library's interface
};

}  // namespace mindspore
