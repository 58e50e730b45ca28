// Certificates made for one test.
#ifndef QPRUNER_SERVER_TESTING_TEST_CERTIFICATES_H_
#define QPRUNER_SERVER_TESTING_TEST_CERTIFICATES_H_

#include <string>

namespace qpruner::server {

struct PemPair {
  std::string certificate;
  std::string key;
};

// An authority, self-signed, valid for a day.
PemPair MakeTestAuthority(const std::string& name);
// A certificate for 127.0.0.1 and localhost that `authority` signed.
PemPair MakeTestCertificate(const std::string& name, const PemPair& authority);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_TESTING_TEST_CERTIFICATES_H_
