#include "postprocessing.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "settings.hpp"

namespace {

std::vector<double> probabilities(std::vector<double> scores) {
  if (settings::activation == "none" || scores.empty()) return scores;
  const bool softmax = settings::activation == "softmax";
  const double greatest = softmax ? *std::max_element(scores.begin(), scores.end()) : 0.0;  // so as not to overflow
  for (double& score : scores) score = std::exp(score - greatest);
  const double sum = softmax ? std::accumulate(scores.begin(), scores.end(), 0.0) : 1.0;
  for (double& score : scores) score /= sum;
  return scores;
}

}  // namespace

std::vector<Answer> ranked(const std::vector<double>& scores) {
  const std::vector<double> shares = probabilities(scores);
  for (const double share : shares)
    if (std::isnan(share) || share == HUGE_VAL)
      throw UnusableScores("the model's scores give no probabilities: NaN or infinity is among them");
  std::vector<std::size_t> order(shares.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return shares[a] > shares[b]; });
  std::vector<Answer> answers;
  for (const std::size_t index : order) {
    if (answers.size() == settings::top_k) break;
    if (shares[index] < settings::threshold) continue;
    answers.push_back({index < settings::labels.size() ? settings::labels[index] : std::to_string(index), shares[index]});
  }
  return answers;
}
