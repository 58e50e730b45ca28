#include "server/testing/test_certificates.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <memory>

#include "gtest/gtest.h"

namespace qpruner::server {
namespace {

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

template <typename Write>
std::string ToPem(const Write& write) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), &BIO_free);
  EXPECT_EQ(write(bio.get()), 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

void AddExtension(X509* certificate, X509* issuer, int id, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, id, value);
  ASSERT_NE(extension, nullptr);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

PemPair Make(const std::string& name, const PemPair* authority) {
  const Key key(EVP_EC_gen("P-256"), &EVP_PKEY_free);
  const Certificate certificate(X509_new(), &X509_free);
  X509_set_version(certificate.get(), 2);
  static long serial = 1;
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 24 * 3600);
  X509_set_pubkey(certificate.get(), key.get());
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  Key issuer_key(nullptr, &EVP_PKEY_free);
  Certificate issuer(nullptr, &X509_free);
  if (authority != nullptr) {
    const std::unique_ptr<BIO, decltype(&BIO_free)> key_pem(
        BIO_new_mem_buf(authority->key.data(), static_cast<int>(authority->key.size())), &BIO_free);
    issuer_key.reset(PEM_read_bio_PrivateKey(key_pem.get(), nullptr, nullptr, nullptr));
    const std::unique_ptr<BIO, decltype(&BIO_free)> pem(
        BIO_new_mem_buf(authority->certificate.data(),
                        static_cast<int>(authority->certificate.size())),
        &BIO_free);
    issuer.reset(PEM_read_bio_X509(pem.get(), nullptr, nullptr, nullptr));
    X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer.get()));
    AddExtension(certificate.get(), issuer.get(), NID_subject_alt_name,
                 "IP:127.0.0.1,DNS:localhost");
  } else {
    X509_set_issuer_name(certificate.get(), subject);
    AddExtension(certificate.get(), certificate.get(), NID_basic_constraints, "critical,CA:TRUE");
  }
  EXPECT_NE(X509_sign(certificate.get(), issuer_key ? issuer_key.get() : key.get(), EVP_sha256()),
            0);
  return {
      .certificate = ToPem([&](BIO* bio) { return PEM_write_bio_X509(bio, certificate.get()); }),
      .key = ToPem([&](BIO* bio) {
        return PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
      })};
}

}  // namespace

PemPair MakeTestAuthority(const std::string& name) { return Make(name, nullptr); }
PemPair MakeTestCertificate(const std::string& name, const PemPair& authority) {
  return Make(name, &authority);
}

}  // namespace qpruner::server
