#include "dataset.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "error.h"
#include "json.h"
#include "manifest.h"

namespace resnext {
namespace {

namespace fs = std::filesystem;

// Endings that make a file an image; those that this program cannot decode are counted as failed, not passed over.
constexpr const char* kEndings[] = {".jpg", ".jpeg", ".jpe",  ".jfif", ".png", ".apng", ".bmp", ".gif",
                                    ".webp", ".tif", ".tiff", ".ppm",  ".pgm", ".pbm",  ".pnm"};
constexpr const char* kGiveNames = "give the classes names: resnext-run convert SOURCE TARGET --classes FILE";
constexpr size_t kMostEndings = 10;
constexpr long kBeyond = 1000000000;

std::string ending_of(const fs::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return ending;
}

bool is_image(const fs::path& path) {
  const std::string ending = ending_of(path);
  return std::any_of(std::begin(kEndings), std::end(kEndings), [&](const char* known) { return ending == known; });
}

bool hidden(const fs::path& path) { return path.filename().string().rfind('.', 0) == 0; }

bool is_number(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return c >= '0' && c <= '9'; });
}

// The value of a number; whatever is beyond nine digits is kBeyond.
long number(const std::string& text) {
  const size_t start = std::min(text.find_first_not_of('0'), text.size());
  if (text.size() - start > 9) return kBeyond;
  return start == text.size() ? 0 : std::stol(text.substr(start));
}

class Classes {
 public:
  Classes(const std::vector<std::string>& names, bool has_names) : names_(names), has_names_(has_names) {
    for (size_t i = 0; i < names.size(); ++i) position_.emplace(names[i], static_cast<int>(i));
  }

  // The class of that name, -1 where there is none.
  int named(const std::string& text) const {
    const auto found = position_.find(text);
    return found != position_.end() ? found->second : -1;
  }

  [[noreturn]] void unknown(const std::string& text, const std::string& where) const {
    if (has_names_) throw Error(kData, where + ": the model has no class '" + text + "'");
    throw Error(kData, where + ": the weights have no class names, so '" + text + "' is unknown; use numbers, or " +
                           kGiveNames);
  }

  // A class by its name, or by its number.
  int find(const std::string& text, bool by_number, const std::string& where) const {
    const int position = by_number && is_number(text) && number(text) < count() ? static_cast<int>(number(text)) : -1;
    if (by_number && position < 0)
      throw Error(kData, where + ": the label " + text + " is not below " + std::to_string(count()));
    const int found = by_number ? position : named(text);
    if (found < 0) unknown(text, where);
    return found;
  }

  long count() const { return static_cast<long>(names_.size()); }
  bool has_names() const { return has_names_; }

 private:
  const std::vector<std::string>& names_;
  bool has_names_;
  std::unordered_map<std::string, int> position_;
};

// -- folders -------------------------------------------------------------------------------------

using Ignored = std::map<std::string, size_t>;

enum class What { kFolder, kImage, kOther };

// A link that leads nowhere, or to itself, is an image by its name: one that cannot be read. A pipe is none.
What what_is(const fs::directory_entry& entry, Ignored& ignored) {
  std::error_code none;
  if (entry.is_directory(none)) return What::kFolder;
  const bool special = !entry.is_regular_file(none) && fs::exists(entry.path(), none);
  if (!special && is_image(entry.path())) return What::kImage;
  const std::string ending = ending_of(entry.path());
  ++ignored[special ? "pipe, socket or device" : ending.empty() ? "without an ending" : ending];
  return What::kOther;
}

// Calls `each` with every entry of a folder that is not hidden.
template <typename Each>
void each_entry(const fs::path& folder, const Each& each) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    if (!hidden(entry->path())) each(*entry);
  if (error) throw Error(kData, "cannot list " + folder.string() + ": " + error.message());
}

// Every image below `folder`. Links are followed; a folder that holds itself is entered once.
void walk(const fs::path& folder, std::vector<fs::path>& above, std::vector<std::string>& found, Ignored& ignored) {
  std::error_code error;
  const fs::path real = fs::canonical(folder, error);
  if (error) throw Error(kData, "cannot list " + folder.string() + ": " + error.message());
  if (std::find(above.begin(), above.end(), real) != above.end()) return;
  above.push_back(real);
  each_entry(folder, [&](const fs::directory_entry& entry) {
    const What what = what_is(entry, ignored);
    if (what == What::kFolder) walk(entry.path(), above, found, ignored);
    if (what == What::kImage) found.push_back(entry.path().string());
  });
  above.pop_back();
}

std::vector<std::string> images_below(const fs::path& folder, Ignored& ignored) {
  std::vector<fs::path> above;
  std::vector<std::string> found;
  walk(folder, above, found, ignored);
  return found;
}

std::map<std::string, int> by_number(const std::string& root, std::vector<std::string> names, long count) {
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return std::pair(number(a), a) < std::pair(number(b), b);
  });
  if (number(names.back()) >= count)
    throw Error(kData, root + " has folders numbered " + names.front() + " to " + names.back() +
                           ", and the weights have no class names but the numbers 0 to " + std::to_string(count - 1) +
                           "; rename the folders, or " + kGiveNames);
  std::map<std::string, int> labels;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0 && number(names[i]) == number(names[i - 1]))
      throw Error(kData, root + " has folders " + names[i - 1] + " and " + names[i] +
                             ", which are the same number; rename one");
    labels[names[i]] = static_cast<int>(number(names[i]));
  }
  return labels;
}

// The class of each folder (sorted names): by name; where the classes have no names, by number or else by position.
std::map<std::string, int> by_folder(const std::string& root, const std::vector<std::string>& names,
                                     const Classes& classes, std::vector<std::string>& remarks) {
  std::map<std::string, int> labels;
  std::string unknown;
  for (const std::string& name : names) {
    labels[name] = classes.named(name);
    if (labels[name] < 0 && unknown.empty()) unknown = name;
  }
  if (unknown.empty()) return labels;
  if (classes.has_names()) classes.unknown(unknown, root + "/" + unknown);
  const auto numbers = std::count_if(names.begin(), names.end(), is_number);
  if (numbers == static_cast<long>(names.size())) return by_number(root, names, classes.count());
  if (numbers > 0)
    throw Error(kData, root + " has folders with numbers (" + *std::find_if(names.begin(), names.end(), is_number) +
                           ") and with names (" + *std::find_if_not(names.begin(), names.end(), is_number) +
                           "), and the weights have no class names; " + kGiveNames);
  if (static_cast<long>(names.size()) != classes.count())
    throw Error(kData, root + " has " + std::to_string(names.size()) + " class folders, and the weights have " +
                           std::to_string(classes.count()) + " classes without names; " + kGiveNames);
  remarks.push_back("the weights have no class names; using the " + std::to_string(names.size()) +
                    " folder names in sorted order");
  for (size_t i = 0; i < names.size(); ++i) labels[names[i]] = static_cast<int>(i);
  return labels;
}

std::string ignored_remark(const Ignored& ignored) {
  size_t total = 0;
  std::vector<std::pair<std::string, size_t>> sorted(ignored.begin(), ignored.end());
  for (const auto& [ending, count] : sorted) total += count;
  if (total == 0) return "";
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  const char* what =
      total == 1 ? " file that is not an image by its name" : " files that are not images by their names";
  std::string text = "ignored " + std::to_string(total) + what;
  for (size_t i = 0; i < std::min(sorted.size(), kMostEndings); ++i) {
    text += (i == 0 ? ": " : ", ") + std::to_string(sorted[i].second) + " ";
    for (const char c : sorted[i].first) text += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? '?' : c;
  }
  if (sorted.size() > kMostEndings)
    text += ", and " + std::to_string(sorted.size() - kMostEndings) + " other endings";
  return text;
}

std::vector<Sample> from_folder(const fs::path& folder, const Classes& classes, std::vector<std::string>& remarks) {
  std::vector<std::string> folders;
  std::string image;
  Ignored ignored;
  each_entry(folder, [&](const fs::directory_entry& entry) {
    const What what = what_is(entry, ignored);
    const std::string name = entry.path().filename().string();
    if (what == What::kFolder) folders.push_back(name);
    if (what == What::kImage && (image.empty() || name < image)) image = name;
  });
  std::sort(folders.begin(), folders.end());
  if (!folders.empty() && !image.empty())
    throw Error(kData, folder.string() + " holds both images (" + image + ") and folders (" + folders.front() +
                           "); put every image into a class folder");
  std::vector<Sample> samples;
  if (folders.empty()) {
    ignored.clear();  // they are found again
    for (std::string& path : images_below(folder, ignored)) samples.push_back({std::move(path), -1});
  } else {
    const auto labels = by_folder(folder.string(), folders, classes, remarks);
    for (const std::string& name : folders)
      for (std::string& path : images_below(folder / name, ignored))
        samples.push_back({std::move(path), labels.at(name)});
  }
  if (const std::string remark = ignored_remark(ignored); !remark.empty()) remarks.push_back(remark);
  return samples;
}

// -- lists ---------------------------------------------------------------------------------------

struct Line {
  std::string where, path, label;
};

std::string stripped(const std::string& text) {
  constexpr const char* kBlanks = " \t\r\n\v\f";
  const size_t start = text.find_first_not_of(kBlanks);
  return start == std::string::npos ? "" : text.substr(start, text.find_last_not_of(kBlanks) + 1 - start);
}

// A path without empty and "." parts.
std::string tidy(const std::string& path) {
  std::string out = path[0] == '/' ? "/" : "";
  std::istringstream parts(path);
  for (std::string part; std::getline(parts, part, '/');)
    if (!part.empty() && part != ".") out += (out.empty() || out.back() == '/' ? "" : "/") + part;
  return out.empty() ? "." : out;
}

// Control characters and line breaks (U+0000 to U+001F, U+007F to U+009F, U+2028, U+2029), which no class name has.
bool has_control(const std::string& text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto at = [&](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0U; };
    if (at(i) < 0x20 || at(i) == 0x7F) return true;
    if (at(i) == 0xC2 && at(i + 1) >= 0x80 && at(i + 1) <= 0x9F) return true;
    if (at(i) == 0xE2 && at(i + 1) == 0x80 && (at(i + 2) == 0xA8 || at(i + 2) == 0xA9)) return true;
  }
  return false;
}

// Lines of "path label", the label behind the last tab or else blank; empty lines and comments (#) are left out.
std::vector<Line> list_lines(const std::string& file) {
  std::string text = read_file(file);
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) text.erase(0, 3);
  if (!is_utf8(text)) throw Error(kData, file + " is not a UTF-8 text list of 'path label' lines; save it as UTF-8");
  std::vector<Line> found;
  std::istringstream stream(text);
  size_t number = 0;
  for (std::string raw; std::getline(stream, raw);) {
    const std::string where = file + ":" + std::to_string(++number);
    const std::string line = stripped(raw);
    if (line.empty() || line[0] == '#') continue;
    size_t gap = line.rfind('\t');
    if (gap == std::string::npos) gap = line.rfind(' ');
    if (gap == std::string::npos) throw Error(kData, where + ": expected 'path label'");
    const std::string path = stripped(line.substr(0, gap)), label = stripped(line.substr(gap + 1));
    if (has_control(label)) throw Error(kData, where + ": the label has a control character; remove it");
    found.push_back({where, tidy(path), label});
  }
  if (found.empty()) throw Error(kData, file + " lists no images; write a 'path label' line for each");
  return found;
}

// The class of each line: labels are of one kind in the whole list, names where every one is a class, else numbers.
std::vector<int> list_labels(const std::vector<Line>& lines, const Classes& classes) {
  const bool names =
      std::all_of(lines.begin(), lines.end(), [&](const Line& line) { return classes.named(line.label) >= 0; });
  const bool numbers = !names && std::all_of(lines.begin(), lines.end(), [&](const Line& line) {
    return is_number(line.label) && line.label.size() < 10;
  });
  std::vector<int> labels;
  for (const Line& line : lines) {
    const bool sign = line.label[0] == '-' || line.label[0] == '+';
    if (sign && is_number(line.label.substr(1)) && classes.named(line.label) < 0)
      throw Error(kData, line.where + ": the label " + line.label + " is neither an integer from 0 nor a class name");
    labels.push_back(classes.find(line.label, numbers, line.where));
  }
  return labels;
}

// Adds a label by `key`; Error(kData) where it has another already.
void add_label(std::unordered_map<std::string, int>& seen, const std::string& key, int label,
               const std::string& where) {
  if (seen.emplace(key, label).first->second != label)
    throw Error(kData, where + ": " + key + " is already listed with another label; keep one of them");
}

std::vector<Sample> from_list(const std::string& file, const Classes& classes) {
  std::vector<Sample> samples;
  std::unordered_map<std::string, int> seen;
  const fs::path folder = fs::path(file).parent_path();
  const std::vector<Line> lines = list_lines(file);
  const std::vector<int> labels = list_labels(lines, classes);
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string& where = lines[i].where;
    add_label(seen, lines[i].path, labels[i], where);
    const fs::path path = folder / lines[i].path;
    std::error_code none;
    if (!fs::is_regular_file(path, none))
      throw Error(kData, where + (fs::exists(path, none) ? ": " + path.string() + " is not a regular file"
                                                         : ": no such file: " + path.string()) +
                             "; correct or remove the line");
    samples.push_back({path.string(), labels[i]});
  }
  return samples;
}

// File name -> class, from JSON (numbers or names) or a text list.
std::unordered_map<std::string, int> read_labels(const std::string& file, const Classes& classes) {
  std::unordered_map<std::string, int> labels;
  std::vector<Line> lines;
  if (fs::path(file).extension() == ".json") {
    const Json json = Json::parse(read_file(file));
    for (const auto& [name, value] : json.members()) {
      const std::string key = fs::path(name).filename().string(), what = file + ": the label of " + name;
      if (value.is(Json::Kind::kNumber))
        add_label(labels, key, static_cast<int>(value.integer(what, 0, classes.count() - 1)), file);
      else
        lines.push_back({file, name, value.string(what)});
    }
  } else {
    lines = list_lines(file);
  }
  const std::vector<int> found = list_labels(lines, classes);
  for (size_t i = 0; i < lines.size(); ++i)
    add_label(labels, fs::path(lines[i].path).filename().string(), found[i], lines[i].where);
  return labels;
}

}  // namespace

Dataset open_dataset(const std::string& data, const std::string& labels, const std::vector<std::string>& names,
                     bool has_names) {
  const Classes classes(names, has_names);
  std::error_code none;
  Dataset set;
  if (fs::is_directory(data, none))
    set.samples = from_folder(data, classes, set.remarks);
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
