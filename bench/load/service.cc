#include "bench/load/service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace qpruner::load {

absl::StatusOr<std::unique_ptr<Service>> Service::Start(Store store, const std::string& parent,
                                                        std::vector<std::string> arguments) {
  std::unique_ptr<Service> service(new Service(parent));
  const std::string& folder = service->folder_.path();
  if (store == Store::kPostgres) {
    ASSIGN_OR_RETURN(service->postgres_, server::PostgresCluster::Start(/*durable=*/true));
    arguments.insert(arguments.end(),
                     {"--store", "postgres", "--postgres-url", service->postgres_->NewDatabase(),
                      "--artifacts-dir", folder + "/artifacts"});
  }
  service->server_ = std::make_unique<ServerProcess>(
      ServerProcess::Options{.folder = folder,
                             .address = absl::StrCat("127.0.0.1:", FreePort()),
                             .arguments = std::move(arguments)});
  RETURN_IF_ERROR(service->server_->Start());
  return service;
}

CpuShares Service::Measure() const {
  return CpuShares(server_->pid(), postgres_ ? postgres_->pid() : 0);
}

std::vector<std::unique_ptr<v1::JobService::Stub>> Service::NewJobStubs(int count) const {
  std::vector<std::unique_ptr<v1::JobService::Stub>> stubs;
  for (int i = 0; i < count; ++i) {
    stubs.push_back(v1::JobService::NewStub(server_->NewChannel()));
  }
  return stubs;
}

}  // namespace qpruner::load
