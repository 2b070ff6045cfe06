#include "image_header.hpp"

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

// Tag 0x0112 of the first directory of a TIFF block; 0 where there is none.
int exif_orientation(Bytes tiff) {
  const bool is_little = starts(tiff, "II");
  if (!is_little && !starts(tiff, "MM")) return 0;
  const auto number = [&](std::size_t at, int count) {
    return is_little ? little(tiff, at, count) : big(tiff, at, count);
  };
  const std::size_t directory = number(4, 4);
  const std::uint32_t entries = number(directory, 2);
  for (std::uint32_t entry = 0; entry < entries; ++entry) {
    const std::size_t at = directory + 2 + 12 * static_cast<std::size_t>(entry);
    if (at + 12 > tiff.size()) break;
    if (number(at, 2) == 0x0112) return static_cast<int>(number(at + 8, number(at + 2, 2) == 4 ? 4 : 2));
  }
  return 0;
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

// Where the next marker after entropy-coded data is: 0xFF that is neither stuffed (00) nor a restart (D0 to D7).
std::size_t end_of_scan(Bytes data, std::size_t at) {
  for (at = data.find('\xFF', at); at != Bytes::npos; at = data.find('\xFF', at + 1)) {
    const std::uint32_t next = byte(data, at + 1);
    if (next != 0x00 && next != 0xFF && (next < 0xD0 || next > 0xD7)) return at;
  }
  return data.size();
}

ImageHeader read_jpeg(Bytes data) {
  ImageHeader header;
  header.format = "jpeg";
  header.ended = false;
  Bytes exif, xmp;
  std::size_t at = 2;
  while (at + 1 < data.size()) {
    const std::uint32_t marker = byte(data, at + 1);
    if (byte(data, at) != 0xFF || marker == 0xFF) {  // stray or fill bytes
      ++at;
      continue;
    }
    if (marker == 0xD9) {
      header.ended = true;
      break;
    }
    const std::size_t length = big(data, at + 2, 2);
    const Bytes segment = part(data, at + 4, length < 2 ? 0 : length - 2);
    if (is_frame_header(marker)) {
      header.height = big(segment, 1, 2);
      header.width = big(segment, 3, 2);
    } else if (marker == 0xE1 && starts(segment, kExif)) {
      exif = segment.substr(kExif.size());
    } else if (marker == 0xE1 && starts(segment, kXmp)) {
      xmp = segment;
    }
    at += 2 + length;
    if (marker == 0xDA) at = end_of_scan(data, at);
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
