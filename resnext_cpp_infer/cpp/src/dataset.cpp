#include "dataset.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <sstream>
#include <unordered_map>

#include "error.h"
#include "json.h"
#include "manifest.h"

namespace resnext {
namespace {

namespace fs = std::filesystem;

// Endings that make a file an image; those that this program cannot decode are counted as failed, not passed over.
constexpr const char* kEndings[] = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"};

bool is_image(const fs::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return std::any_of(std::begin(kEndings), std::end(kEndings), [&](const char* known) { return ending == known; });
}

bool hidden(const fs::path& path) { return path.filename().string().rfind('.', 0) == 0; }

class Classes {
 public:
  explicit Classes(const std::vector<std::string>& names) : count_(static_cast<long>(names.size())) {
    for (size_t i = 0; i < names.size(); ++i) position_.emplace(names[i], static_cast<int>(i));
  }

  // A class by its name, or by its number where no class is called so.
  int find(const std::string& text, const std::string& where) const {
    const auto found = position_.find(text);
    if (found != position_.end()) return found->second;
    if (!text.empty() && text.size() < 10 && std::all_of(text.begin(), text.end(), ::isdigit)) {
      const long number = std::stol(text);
      if (number < count_) return static_cast<int>(number);
    }
    throw Error(kData, where + ": the model has no class '" + text + "'");
  }

 private:
  std::unordered_map<std::string, int> position_;
  long count_;
};

// Every image below `folder`. Links are followed; a folder that holds itself is entered once.
void walk(const fs::path& folder, std::vector<fs::path>& above, std::vector<std::string>& found) {
  std::error_code error;
  const fs::path real = fs::canonical(folder, error);
  if (error) throw Error(kData, "cannot list " + folder.string() + ": " + error.message());
  if (std::find(above.begin(), above.end(), real) != above.end()) return;
  above.push_back(real);
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (hidden(entry->path())) continue;
    std::error_code none;
    if (entry->is_directory(none)) {
      walk(entry->path(), above, found);
    } else if (is_image(entry->path()) && entry->is_regular_file(none)) {
      found.push_back(entry->path().string());
    }
  }
  if (error) throw Error(kData, "cannot list " + folder.string() + ": " + error.message());
  above.pop_back();
}

std::vector<std::string> images_below(const fs::path& folder) {
  std::vector<fs::path> above;
  std::vector<std::string> found;
  walk(folder, above, found);
  return found;
}

std::vector<Sample> from_folder(const fs::path& folder, const Classes& classes) {
  std::vector<fs::path> folders;
  std::string image;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (hidden(entry.path())) continue;
    if (entry.is_directory())
      folders.push_back(entry.path());
    else if (is_image(entry.path()))
      image = entry.path().filename().string();
  }
  if (error) throw Error(kData, "cannot list " + folder.string() + ": " + error.message());
  if (!folders.empty() && !image.empty())
    throw Error(kData, folder.string() + " holds both images (" + image + ") and folders (" +
                           folders.front().filename().string() + "); put every image into a class folder");
  std::vector<Sample> samples;
  if (folders.empty()) {
    for (std::string& path : images_below(folder)) samples.push_back({std::move(path), -1});
  }
  for (const fs::path& one : folders) {
    const int label = classes.find(one.filename().string(), one.string());
    for (std::string& path : images_below(one)) samples.push_back({std::move(path), label});
  }
  return samples;
}

// Lines of "path label", the label behind the last tab or blank; empty ones and those that begin with # say nothing.
std::vector<std::pair<std::string, std::string>> list_lines(const std::string& file) {
  std::vector<std::pair<std::string, std::string>> found;
  std::istringstream stream(read_file(file));
  size_t number = 0;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    size_t gap = line.rfind('\t');
    if (gap == std::string::npos) gap = line.rfind(' ');
    if (gap == std::string::npos || gap == 0)
      throw Error(kData, file + ":" + std::to_string(number) + ": expected 'path label'");
    std::string path = line.substr(0, gap);
    while (!path.empty() && std::isspace(static_cast<unsigned char>(path.back()))) path.pop_back();
    found.emplace_back(path, line.substr(gap + 1));
  }
  return found;
}

std::vector<Sample> from_list(const std::string& file, const Classes& classes) {
  std::vector<Sample> samples;
  const fs::path folder = fs::path(file).parent_path();
  for (const auto& [path, label] : list_lines(file))
    samples.push_back({(folder / path).string(), classes.find(label, file)});
  return samples;
}

// File name -> class, from JSON (numbers or names) or a text list.
std::map<std::string, int> read_labels(const std::string& file, const Classes& classes) {
  std::map<std::string, int> labels;
  if (fs::path(file).extension() != ".json") {
    for (const auto& [path, label] : list_lines(file))
      labels[fs::path(path).filename().string()] = classes.find(label, file);
    return labels;
  }
  const Json json = Json::parse(read_file(file));
  for (const auto& [name, value] : json.members()) {
    const std::string text = value.is(Json::Kind::kNumber) ? json_number(value.number(name)) : value.string(name);
    labels[fs::path(name).filename().string()] = classes.find(text, file);
  }
  return labels;
}

}  // namespace

Dataset open_dataset(const std::string& data, const std::string& labels, const std::vector<std::string>& names) {
  const Classes classes(names);
  std::error_code none;
  Dataset set;
  if (fs::is_directory(data, none))
    set.samples = from_folder(data, classes);
  else if (!fs::is_regular_file(data, none))
    throw Error(kData, "there is no data at " + data);
  else if (is_image(data))
    set.samples = {{data, -1}};
  else
    set.samples = from_list(data, classes);
  if (set.samples.empty()) throw Error(kData, data + " has no images");
  if (!labels.empty()) {
    const auto known = read_labels(labels, classes);
    for (Sample& sample : set.samples) {
      const auto found = known.find(fs::path(sample.path).filename().string());
      if (found == known.end()) throw Error(kData, labels + " has no label for " + sample.path);
      sample.label = found->second;
    }
  }
  std::sort(set.samples.begin(), set.samples.end(), [](const Sample& a, const Sample& b) { return a.path < b.path; });
  set.labelled = std::all_of(set.samples.begin(), set.samples.end(), [](const Sample& s) { return s.label >= 0; });
  return set;
}

}  // namespace resnext
