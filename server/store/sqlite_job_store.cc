#include "server/store/sqlite_job_store.h"
