#include "options.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <limits>
#include <system_error>

#include "settings.hpp"

namespace fs = std::filesystem;

const char* const kUsage =
    " [options] IMAGE|FOLDER...\n"
    "  --batch N      images per run of the model (default 1)\n"
    "  --repeat N     run every batch N times, for timing (default 1)\n"
    "  --threads N    threads inside the model, 1024 at most (default: one per core)\n"
    "  --json FILE    write answers, scores and timings\n"
    "  --dump FILE    write the model's inputs, as raw values, in the order of the answers\n"
    "  --model FILE   default: model.pt beside this program, or in the folder above\n"
    "exit status: 0 all answered, 1 some files refused or not to be read, 2 wrong usage,\n"
    "             3 the model cannot be loaded or run, or what was asked for cannot be written\n";

namespace {

constexpr int kMostThreads = 1024;

int positive(const std::string& option, const std::string& text, int most = std::numeric_limits<int>::max()) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > most)
    throw WrongUsage(option + " takes a number from 1 to " + std::to_string(most) + "; found " + text);
  return value;
}

bool is_image_name(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char letter) { return std::tolower(letter); });
  return suffix == ".jpg" || suffix == ".jpeg" || suffix == ".png" || suffix == ".webp";
}

// The images at any depth in a folder. What cannot be looked at is found too: reading it fails, and names it.
void find(const fs::path& folder, std::vector<std::string>& found) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code unknown;
    const fs::file_type type = entry->status(unknown).type();
    const bool readable = type == fs::file_type::regular, lost = unknown || type == fs::file_type::not_found;
    if (type == fs::file_type::directory && !entry->is_symlink(unknown)) find(entry->path(), found);
    else if ((readable || lost) && is_image_name(entry->path())) found.push_back(entry->path().string());
  }
  if (error) found.push_back(folder.string());
}

// A file stands for itself, a folder for the images in it, sorted.
void add(const std::string& name, std::vector<std::string>& files) {
  std::error_code unknown;
  if (!fs::is_directory(name, unknown)) {
    files.push_back(name);
    return;
  }
  std::vector<std::string> found;
  find(name, found);
  if (found.empty()) throw WrongUsage("no .jpg, .jpeg, .png or .webp file in " + name);
  std::sort(found.begin(), found.end());
  files.insert(files.end(), found.begin(), found.end());
}

std::string default_model() {
  const fs::path here = fs::canonical("/proc/self/exe").parent_path();
  const fs::path beside = here / "model.pt";
  return (fs::exists(beside) ? beside : here.parent_path() / "model.pt").string();
}

}  // namespace

Options parsed(int count, char** words, bool& asked_for_help) {
  Options options;
  bool only_files = false;
  for (int at = 1; at < count; ++at) {
    const std::string word = words[at];
    if (only_files || word.rfind("-", 0) != 0) {
      add(word, options.files);
      continue;
    }
    if (word == "--") {
      only_files = true;
      continue;
    }
    if (word == "--help") {
      asked_for_help = true;
      return options;
    }
    if (at + 1 == count) throw WrongUsage(word + " is no option, or lacks its value");
    const std::string value = words[++at];
    if (word == "--batch") options.batch = positive(word, value);
    else if (word == "--repeat") options.repeat = positive(word, value);
    else if (word == "--threads") options.threads = positive(word, value, kMostThreads);
    else if (word == "--json") options.json = value;
    else if (word == "--dump") options.dump = value;
    else if (word == "--model") options.model = value;
    else throw WrongUsage("no such option: " + word);
  }
  if (options.files.empty()) throw WrongUsage("no image given");
  if (options.batch > 1 && !settings::batched) throw WrongUsage("--batch: this model takes one image at a time");
  if (options.model.empty()) options.model = default_model();
  return options;
}
