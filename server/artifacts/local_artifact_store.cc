#include "server/artifacts/local_artifact_store.h"
