// The command line.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

struct Options {
  std::string model;  // default: model.pt beside the program, or in the folder above
  int batch = 1;
  int repeat = 1;
  int threads = 0;    // 0: libtorch's own choice, one per core
  std::string json;   // empty: none written
  std::string dump;   // likewise
  std::vector<std::string> files;
};

// The command line cannot be understood, or names a folder without images; the text says why.
struct WrongUsage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

extern const char* const kUsage;

// `asked_for_help` is set by --help. Throws WrongUsage.
Options parsed(int count, char** words, bool& asked_for_help);
