// From scores to labels with probabilities, by settings.hpp.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

struct Answer {
  std::string label;
  double probability;
};

// Scores that give no probabilities: NaN or infinity is among them, or they overflow.
struct UnusableScores : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Best first, equals in the order of classes; at most settings::top_k, none below settings::threshold. Throws
// UnusableScores; a score of -inf is none of these.
std::vector<Answer> ranked(const std::vector<double>& scores);
