#include "proto/grpc_headers.h"
