// Predict over gRPC, on libgrpc++'s asynchronous server: one thread, one session run for each call, no batches.
//
// A stand-in for TensorFlow Serving, which it is not: what a small C++ server over the same library costs for a call.
// grpc_server PORT LIBRARY [NAME DIRECTORY INPUT OUTPUT]...
#include <grpcpp/grpcpp.h>

#include <iostream>

#include "model.h"
#include "predict.grpc.pb.h"

namespace tfs = tensorflow::serving;

constexpr int kDtFloat = 1;
constexpr int kWaitingCalls = 128;

void predict(const Models& models, const tfs::PredictRequest& request, tfs::PredictResponse* response) {
  auto found = models.find(request.model_spec().name());
  auto input = request.inputs().find("x");
  if (found == models.end() || input == request.inputs().end()) throw Failed("no such model, or no input x");
  const tfs::FloatTensor& given = input->second;
  std::vector<int64_t> shape;
  for (const auto& dim : given.tensor_shape().dim()) shape.push_back(dim.size());
  Tensor tensor = new_tensor(shape);
  if (given.dtype() != kDtFloat) throw Failed("input x is no float tensor");
  if (given.tensor_content().size() == count(tensor) * sizeof(float)) {
    std::memcpy(values(tensor), given.tensor_content().data(), given.tensor_content().size());
  } else if (static_cast<size_t>(given.float_val_size()) == count(tensor)) {
    std::copy(given.float_val().begin(), given.float_val().end(), values(tensor));
  } else {
    throw Failed("input x has another number of values than its shape");
  }
  Tensor out = found->second->run(tensor);
  tfs::FloatTensor& answer = (*response->mutable_outputs())["y"];
  answer.set_dtype(kDtFloat);
  for (int i = 0; i < pTF_NumDims(out.get()); ++i) {
    answer.mutable_tensor_shape()->add_dim()->set_size(pTF_Dim(out.get(), i));
  }
  answer.mutable_float_val()->Add(values(out), values(out) + count(out));
  tfs::ModelSpec* spec = response->mutable_model_spec();
  spec->set_name(request.model_spec().name());
  spec->mutable_version()->set_value(1);
  spec->set_signature_name("serving_default");
}

// One call from the wait for it to its end; a call that comes leaves another in its place.
class Call {
 public:
  Call(tfs::PredictionService::AsyncService& service, grpc::ServerCompletionQueue& queue, const Models& models)
      : service_(service), queue_(queue), models_(models), answer_(&context_) {
    service_.RequestPredict(&context_, &request_, &answer_, &queue_, &queue_, this);
  }

  void proceed(bool came) {
    if (answered_ || !came) {
      delete this;
      return;
    }
    new Call(service_, queue_, models_);
    answered_ = true;
    try {
      predict(models_, request_, &response_);
      answer_.Finish(response_, grpc::Status::OK, this);
    } catch (const Failed& error) {
      answer_.FinishWithError({grpc::StatusCode::INVALID_ARGUMENT, error.what()}, this);
    }
  }

 private:
  tfs::PredictionService::AsyncService& service_;
  grpc::ServerCompletionQueue& queue_;
  const Models& models_;
  grpc::ServerContext context_;
  tfs::PredictRequest request_;
  tfs::PredictResponse response_;
  grpc::ServerAsyncResponseWriter<tfs::PredictResponse> answer_;
  bool answered_ = false;
};

int main(int argc, char** argv) {
  Models models = load_models(argc - 2, argv + 2);
  tfs::PredictionService::AsyncService service;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  builder.AddListeningPort(std::string("127.0.0.1:") + argv[1], grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  std::unique_ptr<grpc::ServerCompletionQueue> queue = builder.AddCompletionQueue();
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    std::cerr << "port " << argv[1] << " is taken\n";
    return 1;
  }
  for (int i = 0; i < kWaitingCalls; ++i) new Call(service, *queue, models);
  void* tag;
  bool came;
  while (queue->Next(&tag, &came)) static_cast<Call*>(tag)->proceed(came);
  return 0;
}
