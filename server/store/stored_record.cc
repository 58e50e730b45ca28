#include "server/store/stored_record.h"

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"

namespace qpruner::server {

absl::Status ParseShownJob(absl::string_view record, v1::CompressionJob& job) {
  using google::protobuf::internal::WireFormatLite;
  constexpr uint32_t kJobTag = WireFormatLite::MakeTag(internal::v1::JobRecord::kJobFieldNumber,
                                                       WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
  google::protobuf::io::CodedInputStream input(reinterpret_cast<const uint8_t*>(record.data()),
                                               static_cast<int>(record.size()));
  job.Clear();
  bool good = true;
  for (uint32_t tag = input.ReadTag(); good && tag != 0; tag = input.ReadTag()) {
    if (tag != kJobTag) {
      good = WireFormatLite::SkipField(&input, tag);
      continue;
    }
    const auto limit = input.ReadLengthAndPushLimit();
    good = limit >= 0 && job.MergeFromCodedStream(&input) && input.ConsumedEntireMessage();
    input.PopLimit(limit);
  }
  return good && input.ConsumedEntireMessage() && !job.name().empty()
             ? absl::OkStatus()
             : RecordDamaged(internal::v1::JobRecord::descriptor()->full_name());
}

}  // namespace qpruner::server
