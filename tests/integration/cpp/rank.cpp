// A program's postprocessing alone: scores on standard input, one row per line; labels, or why there are none.
#include <cstdlib>
#include <iostream>
#include <sstream>

#include "postprocessing.hpp"

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::vector<double> scores;
    for (std::string word; words >> word;) scores.push_back(std::strtod(word.c_str(), nullptr));
    try {
      for (const Answer& answer : ranked(scores)) std::cout << answer.label << " " << answer.probability << " ";
    } catch (const UnusableScores& error) {
      std::cout << error.what();
    }
    std::cout << "\n";
  }
}
