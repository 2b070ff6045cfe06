#include "image_header.hpp"

#include <iterator>
#include <string_view>

namespace {

using Bytes = std::string_view;

std::uint32_t byte(Bytes data, std::size_t at) {
  return at < data.size() ? static_cast<unsigned char>(data[at]) : 0;
}

// `count` bytes as one number; bytes behind the end are 0.
std::uint32_t big(Bytes data, std::size_t at, int count) {
  std::uint32_t value = 0;
  for (int step = 0; step < count; ++step) value = value << 8 | byte(data, at + step);
  return value;
}

std::uint32_t little(Bytes data, std::size_t at, int count) {
  std::uint32_t value = 0;
  for (int step = count - 1; step >= 0; --step) value = value << 8 | byte(data, at + step);
  return value;
}

Bytes part(Bytes data, std::size_t at, std::size_t count) {
  return at < data.size() ? data.substr(at, count) : Bytes();
}

bool starts(Bytes data, Bytes with) { return data.substr(0, with.size()) == with; }

Bytes without_prefix(Bytes data, Bytes prefix) {
  return starts(data, prefix) ? data.substr(prefix.size()) : data;
}

const Bytes kExif("Exif\0\0", 6);
const Bytes kXmp("http://ns.adobe.com/xap/1.0/\0", 29);

constexpr int kUpright = 1;

// How many bytes a value of a TIFF type takes; 0 for types that there are none of.
std::uint64_t size_of_type(std::uint32_t type) {
  constexpr std::uint64_t kSizes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
  return type < std::size(kSizes) ? kSizes[type] : 0;
}

// Tag 0x0112 of the first directory of a TIFF block, as Pillow finds it: of several the last, and nothing behind an
// entry whose value lies outside. 0 where there is none; a block that is none, or a value that is no number, is upright.
int exif_orientation(Bytes tiff) {
  if (tiff.empty()) return 0;
  const bool is_little = starts(tiff, Bytes("II*\0", 4)) || starts(tiff, Bytes("II\0*", 4));
  const bool is_big = starts(tiff, Bytes("MM\0*", 4)) || starts(tiff, Bytes("MM*\0", 4));
  if (tiff.size() < 8 || !(is_little || is_big)) return kUpright;
  const auto number = [&](std::size_t at, int count) {
    return is_little ? little(tiff, at, count) : big(tiff, at, count);
  };
  const std::size_t directory = number(4, 4);
  const std::uint32_t entries = number(directory, 2);
  std::uint32_t found = 0;
  for (std::uint32_t entry = 0; entry < entries; ++entry) {
    const std::size_t at = directory + 2 + 12 * static_cast<std::size_t>(entry);
    if (at + 12 > tiff.size()) break;
    const std::uint32_t type = number(at + 2, 2);
    const std::uint64_t size = size_of_type(type) * number(at + 4, 4);
    const std::size_t value = size > 4 ? number(at + 8, 4) : at + 8;
    if (value + size > tiff.size()) break;
    if (number(at, 2) != 0x0112 || size == 0) continue;
    const bool is_short = type == 3 || type == 8, is_long = type == 4 || type == 9 || type == 13;
    found = is_short ? number(value, 2) : is_long ? number(value, 4) : type == 6 ? number(value, 1) : 0;
    if (found == 0) found = kUpright;
  }
  return found <= 8 ? static_cast<int>(found) : kUpright;
}

// tiff:Orientation="6" or <tiff:Orientation>6<, which Pillow honours where EXIF has none.
int xmp_orientation(Bytes packet) {
  for (const Bytes key : {Bytes("tiff:Orientation=\""), Bytes("tiff:Orientation>")}) {
    const std::size_t found = packet.find(key);
    if (found != Bytes::npos) return static_cast<int>(byte(packet, found + key.size())) - '0';
  }
  return 0;
}

int orientation(Bytes exif, Bytes xmp) {
  const int tagged = exif_orientation(exif);
  const int found = tagged != 0 ? tagged : xmp_orientation(xmp);
  return found >= 1 && found <= 8 ? found : 1;
}

bool is_frame_header(std::uint32_t marker) {
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

// Where the next segment starts: not at the stuffed 0xFF of pixels, nor at a marker without a segment.
std::size_t next_segment(Bytes data, std::size_t at) {
  for (at = data.find('\xFF', at); at != Bytes::npos; at = data.find('\xFF', at + 1)) {
    const std::uint32_t marker = byte(data, at + 1);
    if (marker >= 0xC0 && marker != 0xFF && (marker < 0xD0 || marker > 0xD7)) return at;
  }
  return data.size();
}

ImageHeader read_jpeg(Bytes data) {
  ImageHeader header;
  header.format = "jpeg";
  header.ended = false;
  std::string exif;
  Bytes xmp;
  for (std::size_t at = next_segment(data, 2); at + 1 < data.size();) {
    const std::uint32_t marker = byte(data, at + 1);
    if (marker == 0xD9) {
      header.ended = true;
      break;
    }
    const std::size_t length = big(data, at + 2, 2);
    const Bytes segment = part(data, at + 4, length < 2 ? 0 : length - 2);
    if (is_frame_header(marker)) {
      header.height = big(segment, 1, 2);
      header.width = big(segment, 3, 2);
    } else if (marker == 0xDA) {
      ++header.scans;
    } else if (marker == 0xE1 && starts(segment, kExif)) {
      exif += segment.substr(kExif.size());  // a long one comes in parts
    } else if (marker == 0xE1 && starts(segment, kXmp)) {
      xmp = segment;
    }
    at = next_segment(data, at + 2 + length);
  }
  header.orientation = orientation(exif, xmp);
  return header;
}

ImageHeader read_png(Bytes data) {
  ImageHeader header;
  header.format = "png";
  header.width = big(data, 16, 4);
  header.height = big(data, 20, 4);
  Bytes exif, xmp;
  for (std::size_t at = 8; at + 12 <= data.size();) {
    const std::size_t length = big(data, at, 4);
    const Bytes type = part(data, at + 4, 4), content = part(data, at + 8, length);
    if (type == "eXIf") exif = without_prefix(content, kExif);
    if (type == "iTXt" && starts(content, "XML:com.adobe.xmp")) xmp = content;
    at += 12 + length;
  }
  header.orientation = orientation(exif, xmp);
  return header;
}

ImageHeader read_webp(Bytes data) {
  ImageHeader header;
  header.format = "webp";
  Bytes exif, xmp;
  for (std::size_t at = 12; at + 8 <= data.size();) {
    const std::size_t length = little(data, at + 4, 4);
    const Bytes type = part(data, at, 4), content = part(data, at + 8, length);
    if (type == "VP8X") {
      header.width = little(content, 4, 3) + 1;
      header.height = little(content, 7, 3) + 1;
    } else if (type == "VP8 " && header.width == 0) {
      header.width = little(content, 6, 2) & 0x3FFF;
      header.height = little(content, 8, 2) & 0x3FFF;
    } else if (type == "VP8L" && header.width == 0) {
      header.width = (little(content, 1, 4) & 0x3FFF) + 1;
      header.height = (little(content, 1, 4) >> 14 & 0x3FFF) + 1;
    } else if (type == "EXIF") {
      exif = without_prefix(content, kExif);
    } else if (type == "XMP ") {
      xmp = content;
    }
    at += 8 + length + length % 2;
  }
  header.orientation = orientation(exif, xmp);
  return header;
}

}  // namespace

ImageHeader read_header(const std::vector<std::uint8_t>& bytes) {
  const Bytes data(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (starts(data, "\xFF\xD8\xFF")) return read_jpeg(data);
  if (starts(data, "\x89PNG\r\n\x1A\n")) return read_png(data);
  if (starts(data, "RIFF") && part(data, 8, 4) == "WEBP") return read_webp(data);
  return ImageHeader();
}
