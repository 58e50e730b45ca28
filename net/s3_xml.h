// The little XML that S3 answers with.
#ifndef QPRUNER_NET_S3_XML_H_
#define QPRUNER_NET_S3_XML_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace qpruner {

// The contents of every element of this name, outermost ones only, in order. A view into `xml`.
std::vector<absl::string_view> XmlElements(absl::string_view xml, absl::string_view name);

// The text of the first element of this name, entities resolved; empty if there is none.
std::string XmlText(absl::string_view xml, absl::string_view name);

}  // namespace qpruner

#endif  // QPRUNER_NET_S3_XML_H_
