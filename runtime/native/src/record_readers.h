// The records of a manifest out of its JSON; fields are read, and missed, in the order of Python's
// dataclasses. All raise BundleError, which names the field.
#ifndef MUTOSCOPE_RECORD_READERS_H
#define MUTOSCOPE_RECORD_READERS_H

#include "decoding_records.h"
#include "json_reader.h"
#include "records.h"

namespace mutoscope {

FileRecord read_file_record(const JsonField &field);
TensorRecord read_tensor(const JsonField &field);
TokenizerRecord read_tokenizer(const JsonField &field);
LatentsRecord read_latents(const JsonField &field);
LimitsRecord read_limits(const JsonField &field);
ConditionRecord read_condition(const JsonField &field);
DefaultsRecord read_defaults(const JsonField &field);
ImageRecord read_image(const JsonField &field);
DecoderRecord read_decoder(const JsonField &field);

}  // namespace mutoscope

#endif
