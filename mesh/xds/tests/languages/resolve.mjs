// Lets node run the TypeScript of this repository as it lies there: generated code under gen/ts names its neighbours as
// the .js files that a build would make, and its packages are installed beside it.
import { registerHooks } from "node:module";

const generated = new URL("../../../../gen/ts/", import.meta.url).href;

registerHooks({
  resolve(specifier, context, next) {
    if (specifier.startsWith("@bufbuild/")) return next(specifier, { ...context, parentURL: generated });
    const built = context.parentURL?.includes("/node_modules/");
    return next(built ? specifier : specifier.replace(/_pb\.js$/, "_pb.ts"), context);
  },
});
