// A button on the nodes that make masks. It opens the panel that shows every phrase of the node's last run.
import { app } from "../../scripts/app.js"
import { Panel } from "./panel.js"
import { text } from "./texts.js"

const NODES = new Set(["LDZNetSegment", "LDZNetSegmentCaptured", "LDZNetAttentionMask"])

let panel // one for all nodes, made when it is first opened

app.registerExtension({
    name: "LDZNet.Look",
    nodeCreated(node) {
        if (!NODES.has(node.comfyClass)) return
        let views = [] // of the last run, newest only
        const open = () => {
            panel ??= new Panel()
            panel.open(node, views)
        }
        const button = node.addWidget("button", text("look"), null, open, { serialize: false })
        button.serialize = false // saved workflows and queued prompts know nothing of it
        const { onExecuted, onRemoved } = node
        node.onExecuted = function (output) {
            onExecuted?.apply(this, arguments)
            views = output?.ldznet ?? []
            panel?.update(node, views)
        }
        node.onRemoved = function () {
            onRemoved?.apply(this, arguments)
            panel?.close(node)
        }
    },
})
