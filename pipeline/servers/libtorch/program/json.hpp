// The little JSON that the program writes.
#pragma once

#include <string>
#include <vector>

namespace json {

std::string text(const std::string& value);
std::string number(double value, int digits);

// [a,b,c] of texts that are JSON already.
std::string list(const std::vector<std::string>& items);

}  // namespace json
