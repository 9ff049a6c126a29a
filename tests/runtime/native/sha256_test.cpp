// SHA-256 against published digests, and each way to compute it against the plain one.
#include "sha256.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.h"

using namespace mutoscope;

namespace {

std::string hash(std::string_view text, Sha256::Code code) {
    Sha256 digest(code);
    digest.update(text.data(), text.size());
    return digest.finish();
}

}  // namespace

TEST(sha256_gives_the_published_digests) {
    const std::vector<std::pair<std::string, const char *>> vectors = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqr"
         "lmnopqrsmnopqrstnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
        {std::string(1000000, 'a'),
         "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"}};
    for (const auto &[text, digest] : vectors) {
        CHECK_EQUAL(hash(text, Sha256::Code::plain), digest);
        CHECK_EQUAL(hash(text, Sha256::Code::fastest), digest);
    }
}

TEST(sha256_does_not_depend_on_the_code_or_the_parts) {
    std::string text;
    for (size_t size = 0; size < 260; ++size) {
        const std::string whole = hash(text, Sha256::Code::plain);
        CHECK_EQUAL(hash(text, Sha256::Code::fastest), whole);
        Sha256 digest;
        for (size_t begin = 0, part = 1; begin < text.size(); begin += part, part = part * 5 % 71) {
            digest.update(text.data() + begin, std::min(part, text.size() - begin));
        }
        CHECK_EQUAL(digest.finish(), whole);
        text += static_cast<char>(size * 37);
    }
}
