// From scores to labels with probabilities, by settings.hpp.
#pragma once

#include <string>
#include <vector>

struct Answer {
  std::string label;
  double probability;
};

// Best first, equals in the order of classes; at most settings::top_k, none below settings::threshold.
std::vector<Answer> ranked(const std::vector<double>& scores);
